"""Rollouts in a process of their own, on a real server: nothing is lost, whoever dies."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from palestra.envs.arithmetic import arithmetic_tasks
from palestra.rollout.engine_options import EngineOptions
from palestra.rollout.process import RolloutDied, RolloutProcess
from palestra.rollout.request import RolloutRequest
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.token_client import TokenClient
from palestra.types import Episode, Outcome, Sampling

REQUEST = RolloutRequest(
    env="palestra/Arithmetic-v0",
    env_args={"task_limit": 40},
    split="train",
    task_ids=(),
    n_per_task=2,
    max_concurrent=16,
    sampling=Sampling(max_tokens=16),
)


@pytest.fixture(scope="module")
def options(
    vllm_server: ServerProcess, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> EngineOptions:
    return EngineOptions(
        kind="vllm",
        model=str(tiny_model_folder),
        context_length=256,
        urls=(vllm_server.base_url,),
        log_folder=str(tmp_path_factory.mktemp("logs")),
    )


@pytest.fixture
def process(options: EngineOptions) -> Iterator[RolloutProcess]:
    process = RolloutProcess(options)
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module")
def request_of_all() -> RolloutRequest:
    tasks = arithmetic_tasks("train", 0, 40)
    return replace(REQUEST, task_ids=tuple(task.id for task in tasks))


async def play(process: RolloutProcess, request: RolloutRequest) -> list[Episode]:
    return [episode async for episode in process.play(request)]


def test_every_episode_arrives_with_its_token_ids(
    process: RolloutProcess, request_of_all: RolloutRequest
) -> None:
    episodes = asyncio.run(play(process, request_of_all))
    assert {(e.task.id, e.sample) for e in episodes} == {
        (task_id, sample) for task_id in request_of_all.task_ids for sample in range(2)
    }
    for episode in episodes:
        assert episode.outcome is Outcome.SCORED
        assert all(turn.prompt_ids and turn.completion_ids for turn in episode.turns)
    # On another event loop, as an evaluation after the training has one.
    assert len(asyncio.run(play(process, request_of_all))) == len(episodes)


def test_leaving_early_cancels_and_the_process_goes_on(
    process: RolloutProcess, request_of_all: RolloutRequest
) -> None:
    async def leave_and_return() -> list[Episode]:
        async with aclosing(process.play(request_of_all)) as episodes:
            async for _ in episodes:
                break
        return await play(process, request_of_all)

    assert len(asyncio.run(leave_and_return())) == 80


def test_a_wrong_request_is_answered_with_its_reason(
    process: RolloutProcess, request_of_all: RolloutRequest
) -> None:
    with pytest.raises(ValueError, match=r'unknown environment "Arithmetik-v0"'):
        asyncio.run(play(process, replace(request_of_all, env="Arithmetik-v0")))
    with pytest.raises(ValueError, match="has no task 'nonsense' in split train"):
        asyncio.run(play(process, replace(request_of_all, task_ids=("nonsense",))))
    with pytest.raises(ValueError, match="must be plain JSON to reach another process"):
        asyncio.run(play(process, replace(request_of_all, env_args={"task_limit": object()})))


def test_a_killed_process_costs_no_episode_and_none_comes_twice(
    process: RolloutProcess, request_of_all: RolloutRequest, tmp_path: Path
) -> None:
    request = replace(request_of_all, record_to=str(tmp_path / "episodes.jsonl"))

    async def play_and_kill() -> list[Episode]:
        episodes: list[Episode] = []
        async for episode in process.play(request):
            episodes.append(episode)
            if len(episodes) in (10, 50):
                os.kill(process.pid, signal.SIGKILL)
        return episodes

    episodes = asyncio.run(play_and_kill())
    assert len(episodes) == len({e.id for e in episodes}) == 80
    recorded = (tmp_path / "episodes.jsonl").read_text().splitlines()
    assert sorted(Episode.from_json(line).id for line in recorded) == sorted(e.id for e in episodes)


def test_a_process_that_dies_again_and_again_is_given_up(
    process: RolloutProcess, request_of_all: RolloutRequest
) -> None:
    async def kill_always() -> None:
        while True:
            async for _ in process.play(request_of_all):
                os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(RolloutDied, match=r"died 4 times, last with status -9; see .*rollout.log"):
        asyncio.run(kill_always())


def test_whatever_is_asked_while_the_process_is_started_again_is_sampled_from_its_last_weights(
    process: RolloutProcess,
    request_of_all: RolloutRequest,
    tiny_model_folder: Path,
    vllm_server: ServerProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = replace(request_of_all, task_ids=request_of_all.task_ids[:1], n_per_task=1)

    async def ask_all_the_while() -> list[Episode]:
        await process.update_weights(7, tiny_model_folder)
        before = process.pid
        os.kill(before, signal.SIGKILL)
        # As a server says that was started again too.
        client = TokenClient(vllm_server.base_url)
        await client.post("/update_weight_version", {"new_version": "0"}, timeout_s=60)
        await client.close()
        playing = []
        while process.pid == before:
            playing.append(asyncio.create_task(play(process, request)))
            await asyncio.sleep(0.02)
        return [episode for episodes in await asyncio.gather(*playing) for episode in episodes]

    try:
        episodes = asyncio.run(ask_all_the_while())
        versions = [span.version for e in episodes for t in e.turns for span in t.version_spans]
        assert len(episodes) > 10
        assert set(versions) == {7}
        assert caplog.text.count("is started again") == 1
    finally:
        asyncio.run(process.update_weights(0, tiny_model_folder))


def test_an_engine_that_cannot_be_reached_is_named(tiny_model_folder: Path) -> None:
    options = EngineOptions(
        kind="vllm",
        model=str(tiny_model_folder),
        context_length=256,
        urls=("http://127.0.0.1:9",),
    )
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9"):
        RolloutProcess(options)
