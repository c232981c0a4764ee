"""Ids: ours, the user's and those of installed packages, all in Gymnasium's registry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import OrderEnforcing, RecordEpisodeStatistics, TimeLimit

import palestra
from palestra import ToolEnv, envs, verifiers
from palestra.tools import tool


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


ADD: dict[str, Any] = {
    "tasks": [{"prompt": "What is 17+25?", "answer": "42"}],
    "tools": [add],
    "verifier": verifiers.number,
}
palestra.register("TestAdd-v0", ToolEnv, **ADD)
EVERY_ID = envs.list()


def make(id: str) -> gymnasium.Env[Any, Any]:
    made: gymnasium.Env[Any, Any] = gymnasium.make(id)
    return made


def test_the_list_has_the_built_in_and_the_registered_ids() -> None:
    assert {"palestra/Arithmetic-v0", "palestra/TestAdd-v0"} <= set(envs.list())
    assert envs.list() == sorted(envs.list())
    assert set(envs.list()) <= set(gymnasium.registry)


@pytest.mark.parametrize("id", EVERY_ID)
def test_every_id_passes_gymnasiums_checker(id: str) -> None:
    check_env(make(id).unwrapped)


@pytest.mark.parametrize("id", EVERY_ID)
def test_every_id_comes_with_order_enforcing(id: str) -> None:
    env = make(id)
    assert isinstance(env, OrderEnforcing)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("1")


@pytest.mark.parametrize("id", EVERY_ID)
def test_every_id_works_under_a_time_limit_and_with_statistics(id: str) -> None:
    env = RecordEpisodeStatistics(TimeLimit(make(id), max_episode_steps=2))
    env.reset(seed=0)
    malformed = "<tool_call>"
    assert env.step(malformed)[2:4] == (False, False)
    *_, terminated, truncated, info = env.step(malformed)
    assert (terminated, truncated) == (False, True)
    assert (info["episode"]["l"], info["episode"]["r"]) == (2, 0.0)
    env.reset(seed=0)
    *_, terminated, truncated, info = env.step("no idea")
    assert (terminated, truncated, info["episode"]["l"]) == (True, False, 1)


@pytest.mark.parametrize("id", EVERY_ID)
def test_every_id_gives_the_same_episode_for_the_same_seed(id: str) -> None:
    def episode() -> list[Any]:
        env = make(id)
        env.action_space.seed(1)
        return [env.reset(seed=5), env.step("<tool_call>"), env.step(env.action_space.sample())]

    assert episode() == episode()


def test_make_adds_the_namespace_and_gives_the_bare_environment() -> None:
    assert type(palestra.make("TestAdd-v0")) is ToolEnv
    assert type(palestra.make("palestra/TestAdd-v0", max_turns=3)) is ToolEnv


def test_an_unknown_id_is_answered_with_the_nearest() -> None:
    for id in ("Arithmetik-v0", "palestra/Arithmetic-v1", "arithmetic"):
        with pytest.raises(
            ValueError, match=r'unknown environment .* "palestra/Arithmetic-v0"'
        ) as error:
            palestra.make(id)
        assert "\n" not in str(error.value)


def test_an_id_may_name_the_module_that_registers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_sums.py").write_text(
        "from palestra import register\n"
        "register('mine/Sum-v0', 'palestra.envs:ToolEnv', tasks=[{'prompt': '1', 'answer': '1'}],\n"
        "         verifier=lambda answer: 1.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="unknown environment"):
        palestra.make("mine/Sum-v0")
    assert type(palestra.make("my_sums:mine/Sum-v0")) is ToolEnv
    with pytest.raises(ValueError, match=r"No module named 'my_summs': is it installed"):
        palestra.make("my_summs:mine/Sum-v0")


@pytest.mark.parametrize("id", ["", "a/b/c-v0", "Add v0", "Add-v0:x"])
def test_a_malformed_id_is_refused(id: str) -> None:
    with pytest.raises(ValueError, match=r"malformed environment id .*: write Name-v0 or"):
        palestra.register(id, ToolEnv, **ADD)


def test_an_id_that_is_taken_is_refused_unless_forced() -> None:
    palestra.register("TestTaken-v0", ToolEnv, **ADD)
    with pytest.raises(
        ValueError, match='"palestra/TestTaken-v0" is already registered; pass force'
    ):
        palestra.register("TestTaken-v0", ToolEnv, **ADD)
    palestra.register("TestTaken-v0", ToolEnv, **ADD, max_turns=3, force=True)
    env = palestra.make("TestTaken-v0")
    assert isinstance(env, ToolEnv)
    assert env.max_turns == 3
    assert envs.list().count("palestra/TestTaken-v0") == 1


def test_an_argument_that_an_environment_does_not_take_is_named_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'max_turn'$") as error:
        palestra.make("TestAdd-v0", max_turn=3)
    assert "\n" not in str(error.value)


def test_a_namespace_of_ones_own_is_kept() -> None:
    palestra.register("acme/TestSum-v0", "palestra.envs:ToolEnv", **ADD, max_episode_steps=3)
    assert "acme/TestSum-v0" in envs.list()
    assert isinstance(gymnasium.make("acme/TestSum-v0"), TimeLimit)
    assert envs.spec("acme/TestSum-v0").max_episode_steps == 3


def test_environments_of_one_id_share_their_tasks_and_tools() -> None:
    one, other = palestra.make("TestAdd-v0"), palestra.make("TestAdd-v0")
    assert isinstance(one, ToolEnv)
    assert isinstance(other, ToolEnv)
    assert one.tasks is other.tasks
    assert one.tools["add"] is other.tools["add"] is add


def test_something_else_than_an_env_is_named() -> None:
    palestra.register("TestCartPole-v0", "gymnasium.envs.classic_control:CartPoleEnv")
    try:
        with pytest.raises(ValueError, match="is a CartPoleEnv, not a palestra environment"):
            palestra.make("TestCartPole-v0")
    finally:
        del gymnasium.registry["palestra/TestCartPole-v0"]


PACKAGE = """
from palestra import ToolEnv, verifiers
import pathlib
pathlib.Path(__file__).with_name("imported").touch()

class SumEnv(ToolEnv):
    def __init__(self, **kwargs):
        super().__init__(tasks=[{"prompt": "1+1", "answer": "2"}], verifier=verifiers.number)
"""


def run_python(script: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-P", "-W", "error::UserWarning:acme", "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def install(site: Path, name: str, entry_points: str) -> None:
    """What pip leaves behind, as far as entry points go."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[palestra.envs]\n{entry_points}\n")


@pytest.mark.parametrize("imports", ["gymnasium, palestra", "palestra, gymnasium"])
def test_installed_packages_add_environments_without_being_imported(
    tmp_path: Path, imports: str
) -> None:
    (tmp_path / "acme_envs.py").write_text(PACKAGE)
    install(tmp_path, "acme", "acme/Sum-v0 = acme_envs:SumEnv")
    done = run_python(
        f"import {imports}, sys\n"
        "assert 'acme/Sum-v0' in gymnasium.registry and 'acme_envs' not in sys.modules\n"
        "env = gymnasium.make('acme/Sum-v0')\n"
        "env.reset(); assert env.step('2')[1] == 1.0\n"
        "from palestra import envs; assert 'acme/Sum-v0' in envs.list()\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "imported").exists()


def test_a_bad_package_is_skipped_with_a_warning_and_the_others_work(tmp_path: Path) -> None:
    (tmp_path / "acme_envs.py").write_text(PACKAGE)
    install(tmp_path, "acme", "acme/Sum-v0 = acme_envs:SumEnv")
    install(tmp_path, "bad", "a/b/c = nowhere:Env\npalestra/Arithmetic-v0 = nowhere:Env")
    done = run_python(
        "import palestra, gymnasium\n"
        "gymnasium.make('acme/Sum-v0')\n"
        "assert type(palestra.make('Arithmetic-v0')).__name__ == 'ArithmeticEnv'\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "entry point 'a/b/c' is skipped: malformed environment id" in done.stderr
    assert "entry point 'palestra/Arithmetic-v0' is skipped" in done.stderr
