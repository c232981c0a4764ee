"""Rollouts in which agents play: the driver's limits, groups, retries and records hold for them."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from palestra.envs import ToolEnv
from palestra.rollout import ChatFormat, Limits, Recorder, read_episodes, rollout
from palestra.rollout.policy import ScriptedPolicy, TokenPolicy
from palestra.rollout.request import RolloutRequest, TaskIndex, play
from palestra.rollout.serving.agent_episode import AgentEpisode
from palestra.rollout.serving.agents import AgentTask
from palestra.rollout.serving.gateway import Gateway
from palestra.rollout.serving.gateway_server import run_gateway
from palestra.trainer.batch import rows_of
from palestra.types import Episode, Outcome, Sampling, Task

# An environment and agents as a user has them, in a module of their own.
MODULE = """
import openai
from palestra import ToolEnv, register
from palestra.verifiers import number

class SumEnv(ToolEnv):
    def __init__(self, split="train"):
        rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(4)]
        super().__init__(tasks=rows, verifier=number)

register("test/{name}-v0", SumEnv)
calls = []

async def ask(task):
    async with openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key) as client:
        answer = await client.chat.completions.create(model="any", messages=list(task.messages))
        return answer.choices[0].message.content

async def fails_first(task):
    calls.append(task.id)
    answer = await ask(task)
    if calls.count(task.id) == 1:
        raise ConnectionError("the agent's database is away")
    return answer
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "sums_" + re.sub(r"\W", "", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(MODULE.replace("{name}", name))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def request_of(module: str, agent: str, **fields: Any) -> RolloutRequest:
    return RolloutRequest(
        env=f"{module}:test/{module}-v0",
        split="train",
        task_ids=tuple(f"train-{n}" for n in range(4)),
        agent=f"{module}:{agent}",
        sampling=Sampling(max_tokens=20),
        **fields,
    )


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def watched() -> Any:
        result = await asyncio.wait_for(work, timeout=250)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(watched())


async def collect(request: RolloutRequest, policy: Any) -> list[Episode]:
    return [episode async for episode in play(request, policy, TaskIndex())]


@pytest.fixture
def policy(make_engine: Any, chat_format: ChatFormat) -> Any:
    """Makes a policy that always says 4."""
    return lambda: TokenPolicy(make_engine("It is 4."), chat_format)


def test_a_request_names_an_agent_and_its_episodes_are_recorded_and_resumed(
    module: str, policy: Any, tmp_path: Path
) -> None:
    path = tmp_path / "episodes.jsonl"
    request = request_of(module, "ask", n_per_task=2, record_to=str(path))
    request = RolloutRequest.from_json(request.to_json())
    first = policy()
    episodes = run(collect(request, first))
    assert len(episodes) == 8 and all(e.outcome is Outcome.SCORED for e in episodes)
    assert {e.id for e in episodes if e.reward} == {"train-2/0", "train-2/1"}
    assert len(read_episodes(path)) == 8
    seeds = {sampling.seed for sampling in first.engine.samplings}
    assert len(seeds) == 8
    again = policy()
    resumed = run(collect(request, again))
    assert sorted(e.id for e in resumed) == sorted(e.id for e in episodes)
    assert again.engine.prompts == []


def test_an_agent_that_fails_is_tried_again(module: str, policy: Any) -> None:
    episodes = run(collect(request_of(module, "fails_first"), policy()))
    outcomes = Counter((e.attempt, str(e.outcome), e.cause) for e in episodes)
    assert outcomes == {(0, "failed", "agent"): 4, (1, "scored", None): 4}


@pytest.mark.parametrize(
    ("agent", "complaint"),
    [("aks", "has no aks; did you mean ask"), ("SumEnv", "must be an `async def`")],
)
def test_a_missing_agent_is_told_in_one_line_before_anything_is_played(
    module: str, policy: Any, agent: str, complaint: str
) -> None:
    first = policy()
    with pytest.raises(ValueError, match=complaint):
        run(collect(request_of(module, agent), first))
    assert first.engine.prompts == []


def test_an_agent_needs_a_policy_of_tokens(module: str) -> None:
    with pytest.raises(ValueError, match="agents need a TokenPolicy"):
        run(collect(request_of(module, "ask"), ScriptedPolicy(["4"])))


def test_leaving_early_leaves_nothing_behind(module: str, policy: Any) -> None:
    first = policy()
    first.engine.gate.clear()

    async def leave() -> None:
        episodes = play(request_of(module, "ask"), first, TaskIndex())
        waiting = asyncio.create_task(anext(episodes))
        while first.engine.running < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await episodes.aclose()
        assert first.engine.running == 0

    run(leave())


MARK = re.compile(r"M\d+M")


def echo(prompt: str, number: int) -> str:
    """The marker of the conversation and how many replies it has had."""
    return f"{MARK.findall(prompt)[-1]} {prompt.count('assistant')}"


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_of_many_episodes_at_once_none_is_lost_mixed_up_or_trained_twice(
    count: int, make_engine: Any, chat_format: ChatFormat, tmp_path: Path
) -> None:
    tasks = [
        Task(id=str(n), messages=({"role": "user", "content": f"M{n}M"},), answer=f"M{n}M 4")
        for n in range(count)
    ]
    at_once = 0
    most = 0

    async def converse(client: aiohttp.ClientSession, task: AgentTask) -> str:
        """Three turns, then the second again in other words: a fork."""
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        mark = task.messages[0]["content"]
        said = list(task.messages)
        answer = ""
        for step in range(4):
            history = said if step < 3 else [*said[:2], {"role": "user", "content": f"{mark}!"}]
            body = {"model": "any", "messages": history, "stream": False}
            async with client.post(f"{task.base_url}/chat/completions", json=body) as got:
                assert got.status == 200, await got.text()
                reply = (await got.json())["choices"][0]["message"]
            answer = reply["content"]
            assert MARK.findall(answer) == [mark]
            said += [reply, {"role": "user", "content": f"{mark}?"}]
        at_once -= 1
        return answer

    async def play_all() -> list[Episode]:
        engine = make_engine(echo)
        engine.gate.clear()
        policy = TokenPolicy(engine, chat_format)
        gateway = Gateway(engine, chat_format)
        connector = aiohttp.TCPConnector(limit=0)
        async with run_gateway(gateway), aiohttp.ClientSession(connector=connector) as client:

            async def all_begun() -> None:
                while engine.running < count:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                engine.gate.set()

            begun = asyncio.create_task(all_begun())
            with Recorder(tmp_path / "episodes.jsonl") as recorder:
                episodes = rollout(
                    lambda: ToolEnv(tasks=tasks, verifier=lambda reply, answer: reply == answer),
                    tasks,
                    policy,
                    max_concurrent=count,
                    limits=Limits(max_turns=4),
                    sampling=Sampling(max_tokens=30),
                    recorder=recorder,
                    make_episode=partial(
                        AgentEpisode, agent=partial(converse, client), gateway=gateway
                    ),
                )
                played = [episode async for episode in episodes]
            await begun
            assert sum(map(len, (episode.turns for episode in played))) == len(engine.prompts)
        return played

    played = run(play_all())
    assert most == count
    assert sorted(int(e.task.id) for e in played) == list(range(count))
    trained: Counter[float] = Counter()
    for episode in played:
        assert (episode.outcome, episode.attempt) == (Outcome.SCORED, 0), episode.detail
        assert [turn.parent for turn in episode.turns] == [None, 0, 1, 0]
        mark = f"M{episode.task.id}M"
        assert {found for m in episode.messages for found in MARK.findall(m["content"])} == {mark}
        for row in rows_of(episode, 1.0):
            trained.update(row.sampled_logprobs)
    # Each token that the engine sampled has a log-probability of its own.
    assert set(trained.values()) == {1}
    assert len(trained) == sum(len(t.completion_ids) for e in played for t in e.turns)
    written = read_episodes(tmp_path / "episodes.jsonl")
    assert {e.id for e in written} == {e.id for e in played} and len(written) == count
    assert written[0] in played
