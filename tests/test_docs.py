"""What the documents say is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

PLAY_IT = """
import gymnasium
import palestra

CALL = '<tool_call>{"name": "add", "arguments": {"a": 17, "b": 25}}</tool_call>'
for env in (palestra.make("Add-v0"), gymnasium.make("palestra/Add-v0")):
    observation, info = env.reset(seed=0)
    assert observation == ({"role": "user", "content": "What is 17+25?"},)
    observation, reward, terminated, truncated, info = env.step(CALL)
    assert (observation[0]["content"], reward, terminated) == ("42", 0.0, False)
    observation, reward, terminated, truncated, info = env.step("It is 42.")
    assert (reward, terminated, truncated) == (1.0, True, False)
"""


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    "code",
    [python_blocks(README)[0], (ROOT / "examples" / "add.py").read_text()],
    ids=["README.md", "examples/add.py"],
)
def test_the_ten_line_environment_works_as_printed(code: str, tmp_path: Path) -> None:
    # In a file, as a reader would try it; -W error as in the other tests.
    program = tmp_path / "program.py"
    program.write_text(code + PLAY_IT)
    done = subprocess.run(
        [sys.executable, "-W", "error", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_environment_of_the_readme_takes_ten_lines() -> None:
    lines = python_blocks(README)[0].splitlines()
    # The docstring is the tool's description, hence code.
    assert len([line for line in lines if line.strip()]) <= 10


def test_the_readme_prints_the_tree_as_it_is(tmp_path: Path) -> None:
    code = "import print_tree, sys; sys.stdout.write(print_tree.with_tree(sys.stdin.read()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "docs",
        env={"PYTHONPATH": str(ROOT / "docs")},
        input=README,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == README, "run: python docs/print_tree.py"


def test_every_source_file_says_what_it_is() -> None:
    entries = README.partition("<!-- tree -->")[2].partition("<!-- /tree -->")[0].splitlines()
    files = [line.split(maxsplit=1) for line in entries if ".py" in line]
    assert [entry[0] for entry in files if len(entry) < 2] == []
    assert len(files) > 30


@pytest.mark.parametrize("document", ["README.md", "AGENTS.md", "benchmarks/README.md"])
def test_links_between_documents_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
