"""Episodes with the built-in tools in real sandboxes, and the outcome rule from both sides."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from palestra.envs import ToolEnv, check, guarded_reset, guarded_score, guarded_step
from palestra.envs.env import Step
from palestra.tools import Sandbox, SandboxSpec, bash, files, python, tool
from palestra.tools.sandboxes import Guarantee, LeasedSandbox, Limits, close_pools, pool_of
from palestra.tools.sandboxes.choose import backend_class
from palestra.tools.sandboxes.namespace import NamespaceSandbox
from palestra.types import Outcome, Task
from palestra.verifiers import number

TASK = {"prompt": "1+1", "answer": "2", "numbers": [1, 1]}
NOTHING: dict[str, int] = {}


@pytest.fixture(params=["unsafe", "namespace"])
def spec(request: pytest.FixtureRequest) -> Iterator[SandboxSpec]:
    yield available(request.param)
    close_pools()


@pytest.fixture
def namespace() -> Iterator[SandboxSpec]:
    yield available("namespace")
    close_pools()


def available(backend: str) -> SandboxSpec:
    spec = SandboxSpec(backend=backend, packages=(), warm=0)
    offered = backend_class(backend).capabilities(spec)
    if not offered.available:
        if os.environ.get("CI"):
            pytest.fail(f"{backend} must work in CI: {offered.problem}")
        pytest.skip(f"{backend}: {offered.problem}")
    return spec


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def env_with(spec: SandboxSpec, *tools: Any, **options: Any) -> ToolEnv:
    given = {"tasks": [TASK], "verifier": number, "sandbox": spec, "tools": tools, **options}
    return ToolEnv(**given)


def answers(step: Step) -> list[str]:
    return [message["content"] for message in step[0]]


def test_the_tools_work_together_in_one_sandbox_per_episode(spec: SandboxSpec) -> None:
    env = env_with(spec, python, bash, files)
    for _ in range(2):
        _, info = env.reset(seed=0)
        schemas = {schema["function"]["name"]: schema["function"] for schema in info["tools"]}
        assert list(schemas["python"]["parameters"]["properties"]) == ["code"]
        step = env.step(
            call("python", code="x = 41")
            + call("python", code="import os; x += 1; print(os.listdir())")
            + call("bash", command="echo $((40 + 2)) > result")
            + call("files", command="view", path="result")
        )
        listed = answers(step)[1]
        assert "result" not in listed  # in order, and nothing left of the episode before
        assert answers(step)[3] == "     1\t42"
        _, reward, terminated, _, info = env.step("2")
        assert (reward, terminated, info["outcome"]) == (1.0, True, Outcome.SCORED)
        assert pool_of(spec).counts()["taken"] == 0


def test_an_episode_that_is_left_or_closed_gives_its_sandbox_back(spec: SandboxSpec) -> None:
    env = env_with(spec, python)
    for _ in range(2):
        env.reset(seed=0)
        env.step(call("python", code="1"))
        assert pool_of(spec).counts()["taken"] == 1
    env.close()
    assert pool_of(spec).counts()["taken"] == 0


def test_an_episode_without_calls_takes_no_sandbox(spec: SandboxSpec) -> None:
    env = env_with(spec, python)
    env.reset(seed=0)
    assert pool_of(spec).counts()["taken"] == 0
    assert env.step("2")[1] == 1.0


def test_a_sandboxed_environment_passes_every_check(spec: SandboxSpec) -> None:
    check(env_with(spec, python, bash, files), episodes=1)


def test_a_sandbox_that_cannot_be_had_is_refused_when_the_environment_is_made() -> None:
    strict = SandboxSpec(requires=frozenset({Guarantee.OWN_KERNEL}), backend="namespace")
    with pytest.raises(ValueError, match=r"namespace: .*own_kernel") as error:
        env_with(strict, python)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="sandbox must be a SandboxSpec, got 'docker'"):
        env_with("docker", python)  # type: ignore[arg-type]


# Files for the task, and their verdict.


async def write_numbers(sandbox: Sandbox, task: Task) -> None:
    await sandbox.write("numbers.json", json.dumps(task.info["numbers"]))


def write_numbers_blocking(sandbox: Sandbox, task: Task) -> None:
    sandbox.sync.write("numbers.json", json.dumps(task.info["numbers"]))


async def read_sum(sandbox: Sandbox, answer: str) -> bool:
    """Trusts the policy to write a number."""
    found = json.loads(await sandbox.read("sum.json"))
    return str(found["sum"]) == answer


def read_sum_blocking(sandbox: Sandbox, answer: str) -> bool:
    return str(json.loads(sandbox.sync.read("sum.json"))["sum"]) == answer


SOLUTION = call(
    "python",
    code="import json; n = json.load(open('numbers.json')); json.dump({'sum': sum(n)}, "
    "open('sum.json', 'w'))",
)


@pytest.mark.parametrize(
    ("setup", "verifier"),
    [(write_numbers, read_sum), (write_numbers_blocking, read_sum_blocking)],
)
def test_a_task_brings_files_and_is_judged_by_those_it_asks_for(
    spec: SandboxSpec, setup: Any, verifier: Any
) -> None:
    env = env_with(spec, python, setup=setup, verifier=verifier)
    env.reset(seed=0)
    assert answers(env.step(SOLUTION)) == ["[no output]"]
    assert env.step("done")[1] == 1.0


@pytest.mark.parametrize(
    "action",
    [
        call("python", code="pass"),  # no file at all
        call("python", code="open('sum.json', 'w').write('garbage')"),
        call("python", code="open('sum.json', 'w').write('[1]')"),
        call("python", code="import os; os.mkfifo('sum.json')"),
        call("python", code="open('sum.json', 'w').write('{\"sum\": 3}')"),
    ],
)
@pytest.mark.parametrize("verifier", [read_sum, read_sum_blocking])
def test_whatever_the_policy_leaves_to_the_verifier_is_scored(
    spec: SandboxSpec, action: str, verifier: Any
) -> None:
    env = env_with(spec, python, verifier=verifier)
    env.reset(seed=0)
    env.step(action)
    _, reward, terminated, _, info = env.step("done")
    assert (reward, terminated, info["outcome"]) == (0.0, True, Outcome.SCORED)
    assert pool_of(spec).counts()["taken"] == 0


def test_a_verifier_that_is_broken_in_a_fresh_sandbox_is_our_fault(spec: SandboxSpec) -> None:
    async def broken(sandbox: Sandbox) -> bool:
        await sandbox.run("true")
        raise KeyError("typo")

    env = env_with(spec, python, verifier=broken)
    env.reset(seed=0)
    *_, info = env.step("done")
    assert (info["outcome"], info["cause"]) == (Outcome.FAILED, "verifier")
    assert "KeyError: 'typo'" in info["detail"]


def test_a_setup_that_fails_is_our_fault(spec: SandboxSpec) -> None:
    async def setup(sandbox: Sandbox) -> None:
        await sandbox.write("file", json.dumps(NOTHING["missing"]))

    env = env_with(spec, python, setup=setup)
    _, info = env.reset(seed=0)
    assert (info["outcome"], info["cause"]) == (Outcome.FAILED, "setup")
    assert info["detail"] == "KeyError: 'missing'"
    assert pool_of(spec).counts()["taken"] == 0


def test_a_setup_that_cannot_be_called_is_refused() -> None:
    def setup(folder: str) -> None: ...

    with pytest.raises(ValueError, match='setup setup asks for "folder"'):
        env_with(SandboxSpec(backend="unsafe"), python, setup=setup)


# Who killed it decides the outcome.


def test_a_sandbox_that_its_own_code_wears_out_is_replaced_and_the_episode_scored(
    spec: SandboxSpec,
) -> None:
    short = dataclasses.replace(spec, limits=Limits(wall_s=1.5))
    env = env_with(short, python, setup=write_numbers)
    env.reset(seed=0)
    step = env.step(call("python", code="x = 1; import time; time.sleep(20)"))
    (lost,) = step[4]["tool_results"]
    assert lost.error == "resources"
    assert "The next call gets a new one: files, variables and processes are gone" in lost.content
    step = env.step(call("python", code="import os; print('x' in globals(), os.listdir())"))
    assert answers(step) == ["False ['numbers.json']"]
    _, reward, *_, info = env.step("2")
    assert (reward, info["outcome"]) == (1.0, Outcome.SCORED)


def test_memory_is_the_policys_to_waste(namespace: SandboxSpec) -> None:
    small = dataclasses.replace(namespace, limits=Limits(memory_mb=64))
    env = env_with(small, python, bash)
    env.reset(seed=0)
    bomb = "kept = []\nwhile True: kept.append(b'a' * (1 << 20))"
    (greedy,) = env.step(call("python", code=bomb))[4]["tool_results"]
    assert greedy.error == "resources" or "MemoryError" in greedy.content
    assert answers(env.step(call("bash", command="echo alive")))[0].startswith("alive")
    assert env.step("2")[4]["outcome"] == Outcome.SCORED


def test_a_sandbox_that_is_killed_from_outside_fails_the_episode(namespace: SandboxSpec) -> None:
    env = env_with(namespace, bash)
    env.reset(seed=0)
    env.step(call("bash", command="true"))
    os.kill(host_pid(env.sandbox), signal.SIGKILL)
    *_, info = env.step(call("bash", command="echo"))
    assert (info["outcome"], info["cause"]) == (Outcome.FAILED, "sandbox:namespace")
    env.reset(seed=0)  # the pool goes on
    assert answers(env.step(call("bash", command="echo on"))) == ["on"]


def host_pid(sandbox: Sandbox | None) -> int:
    """The first process of an episode's sandbox, as the host numbers it."""
    assert isinstance(sandbox, LeasedSandbox)
    assert isinstance(sandbox._sandbox, NamespaceSandbox)
    lines = Path(f"/proc/self/fdinfo/{sandbox._sandbox._pidfd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


@tool(timeout_s=0.5)
async def run_slowly(sandbox: Sandbox) -> str:
    """A tool that does not keep its time."""
    return (await sandbox.run("sleep 30; echo done")).stdout


def test_a_call_that_is_cut_off_costs_the_policy_its_sandbox(spec: SandboxSpec) -> None:
    env = env_with(spec, run_slowly, python)
    env.reset(seed=0)
    (late,) = env.step(call("run_slowly"))[4]["tool_results"]
    assert (late.error, late.content) == ("timeout", "run_slowly timed out after 0.5 s")
    (told,) = env.step(call("python", code="1"))[4]["tool_results"]
    assert told.error == "resources"
    assert "a call was cut off" in told.content
    assert answers(env.step(call("python", code="1 + 1"))) == ["2"]
    assert env.step("2")[4]["outcome"] == Outcome.SCORED


def test_an_episode_whose_deadline_cuts_off_a_call_is_scored(spec: SandboxSpec) -> None:
    async def episode() -> Step:
        env = env_with(spec, python, verifier=read_sum)
        await guarded_reset(env)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.7):
                await guarded_step(env, call("python", code="import time; time.sleep(60)"))
        return await guarded_score(env, "deadline")

    _, reward, *_, info = asyncio.run(episode())
    assert (reward, info["outcome"]) == (0.0, Outcome.SCORED)
    assert pool_of(spec).counts()["taken"] == 0
