"""`palestra envs new NAME`: a small environment that works, with its test and packaging."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

ENVIRONMENT = '''\
"""Shopping sums that take a look at the price list: replace them by your tasks and tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from palestra import Task, ToolEnv, ToolError, register, tool, verifiers
from palestra.rollout.policy import tool_call
from palestra.types import Message

PRICES = {"apple": 31, "banana": 24, "cherry": 7, "mango": 118, "plum": 19}


@tool
def price(item: str) -> int:
    """Look up the price of one item, in cents.

    Args:
        item: The item, in the singular.
    """
    if item not in PRICES:
        # A ToolError is a message that the model reads and may recover from.
        raise ToolError(f"no item {item!r}; there are {', '.join(PRICES)}")
    return PRICES[item]


def tasks(split: str) -> Iterator[dict[str, str]]:
    """Every task of a split; "train" and "test" share none."""
    for item in PRICES:
        for count in range(2, 52):
            if (count % 5 == 0) == (split == "test"):
                prompt = f"What do {count} pieces of {item} cost, in cents?"
                # What is neither prompt nor answer goes to Task.info, unseen by the policy.
                yield {"prompt": prompt, "answer": str(count * PRICES[item]), "item": item}


class __CLASS__(ToolEnv):
    """Find out what several pieces of one item cost, by a look at the price list."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tasks=tasks, tools=[price], verifier=verifiers.number, **kwargs)

    @staticmethod
    def solve(task: Task, messages: Sequence[Message]) -> str:
        """An oracle's next reply, for `palestra eval --model oracle` and demonstrations."""
        if messages[-1]["role"] == "tool":
            return str(task.answer)
        return tool_call("price", item=task.info["item"])


# Installed packages are found by the entry point in pyproject.toml, which this then replaces.
register("__ID__", __CLASS__, force=True)
'''

TEST = '''\
"""What must hold of __ID__, whoever plays it."""

from __future__ import annotations

import palestra
from gymnasium.utils.env_checker import check_env
from palestra.rollout.policy import tool_call

import __MODULE__

ID = "__ID__"


def test_looking_up_the_price_and_multiplying_scores_one() -> None:
    env = palestra.make(ID)
    observation, info = env.reset(seed=0)
    look_up = __MODULE__.__CLASS__.solve(info["task"], observation)
    observation, reward, terminated, _, _ = env.step(look_up)
    assert observation[0]["content"] == str(__MODULE__.PRICES[info["task"].info["item"]])
    assert (reward, terminated) == (0.0, False)
    _, reward, terminated, _, _ = env.step(f"They cost {info['task'].answer} cents.")
    assert (reward, terminated) == (1.0, True)


def test_a_wrong_answer_scores_zero() -> None:
    env = palestra.make(ID)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("They cost 1 cent.")
    assert (reward, terminated) == (0.0, True)
    assert info["outcome"] == "scored"


def test_an_unknown_item_is_answered_to_the_model() -> None:
    env = palestra.make(ID)
    env.reset(seed=0)
    observation, *_ = env.step(tool_call("price", item="kiwi"))
    assert "no item 'kiwi'" in observation[0]["content"]


def test_the_splits_share_no_task() -> None:
    train = {row["prompt"] for row in __MODULE__.tasks("train")}
    test = {row["prompt"] for row in __MODULE__.tasks("test")}
    assert (len(train), len(test), len(train & test)) == (200, 50, 0)


def test_it_keeps_gymnasiums_contract() -> None:
    check_env(palestra.make(ID), skip_render_check=True)
'''

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "__DIST__"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["palestra"]

# How palestra finds the environment once this package is installed.
[project.entry-points."palestra.envs"]
"__ID__" = "__MODULE__:__CLASS__"

[tool.setuptools]
py-modules = ["__MODULE__"]

[tool.pytest.ini_options]
pythonpath = ["."]
"""


def write_environment(name: str, out: Path | None) -> int:
    """Write NAME.py, test_NAME.py and pyproject.toml into a new folder.

    Raises:
        ValueError: a name that cannot be a Python module's, or a folder with something in it.
    """
    module = name.replace("-", "_").lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise ValueError(
            f"{name!r} cannot name a Python module: use letters, digits and underscores, "
            "for example price_list"
        )
    if importlib.util.find_spec(module) is not None:
        raise ValueError(f"there is a module {module} already, which this would hide: rename it")
    folder = out or Path(module)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty: choose another with --out DIR")
    title = "".join(part.capitalize() for part in module.split("_"))
    names = {
        "__CLASS__": f"{title}Env",
        "__DIST__": module.replace("_", "-"),
        "__ID__": f"{module}/{title}-v0",
        "__MODULE__": module,
    }
    files = {
        f"{module}.py": ENVIRONMENT,
        f"test_{module}.py": TEST,
        "pyproject.toml": PYPROJECT,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        for placeholder, value in names.items():
            text = text.replace(placeholder, value)
        (folder / file).write_text(text)
    print(f"wrote {', '.join(str(folder / file) for file in files)}")
    print(f"test it:     cd {folder} && python -m pytest")
    print(f"install it:  pip install -e {folder}")
    print(f"play it:     palestra eval {names['__ID__']} --model oracle")
    return 0
