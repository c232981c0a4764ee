"""`import palestra` is light, and Gymnasium knows the environments however things are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXAMPLE = '''
from palestra import ToolEnv, register, tool, verifiers

@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b

register("Add-v0", ToolEnv, tasks=[{"prompt": "What is 17+25?", "answer": "42"}],
         tools=[add], verifier=verifiers.number)
'''

PLAY = """
import gymnasium
env = gymnasium.make("palestra/Add-v0")
env.reset(seed=0)
call = '<tool_call>{"name": "add", "arguments": {"a": 17, "b": 25}}</tool_call>'
print(env.step(call)[0][0]["content"], env.step("It is 42.")[1])
"""


def run_python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_ten_line_environment_works_as_printed() -> None:
    assert run_python(EXAMPLE + PLAY) == "42 1.0\n"


def test_import_palestra_imports_nothing_slow() -> None:
    script = (
        "import sys, palestra\n"
        "slow = {'torch', 'transformers', 'numpy', 'gymnasium', 'pydantic', 'sympy', 'datasets'}\n"
        "print(slow & set(sys.modules))"
    )
    assert run_python(script) == "set()\n"


def test_import_of_every_environment_module_needs_no_torch() -> None:
    script = (
        "import sys, palestra.envs.check, palestra.envs.arithmetic\n"
        "print({'torch', 'transformers', 'sympy', 'datasets'} & set(sys.modules))"
    )
    assert run_python(script) == "set()\n"


@pytest.mark.parametrize(
    "imports",
    [
        "import palestra, gymnasium",
        "import gymnasium, palestra",
        "import palestra, gymnasium.spaces",
        "import palestra; from gymnasium.vector import AsyncVectorEnv",
        "from palestra.envs import ToolEnv; import gymnasium",
        "import palestra.envs.registry, gymnasium",
        "import palestra.envs.spaces, gymnasium",
        "import palestra, importlib; importlib.reload(palestra); import gymnasium",
    ],
)
def test_gymnasium_knows_the_environments_in_any_order_of_imports(imports: str) -> None:
    script = f"{imports}\nimport gymnasium, inspect\n" + (
        "assert 'palestra/Arithmetic-v0' in gymnasium.registry\n"
        "assert 'def make' in inspect.getsource(gymnasium.envs.registration)\n"
        "print(type(gymnasium.__spec__.loader).__name__)"
    )
    assert run_python(script) == "SourceFileLoader\n"


def test_every_public_name_can_be_imported() -> None:
    script = (
        "import palestra, palestra.envs\n"
        "for package in (palestra, palestra.envs):\n"
        "    for name in package.__all__:\n"
        "        if name not in ('trainer', 'rollout'): getattr(package, name)\n"
        "print(palestra.envs.list())"
    )
    assert run_python(script) == "['palestra/Arithmetic-v0']\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import palestra
    import palestra.envs

    for package in (palestra, palestra.envs):
        with pytest.raises(AttributeError, match="nonsense"):
            package.nonsense  # noqa: B018
