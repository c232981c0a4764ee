"""Agents that run elsewhere open and close episodes over HTTP; every one ends and is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from palestra.envs import Env, ToolEnv
from palestra.rollout import ChatFormat, Limits, Recorder, read_episodes
from palestra.rollout.policy import TokenPolicy
from palestra.rollout.serving.app import Served, build_app
from palestra.rollout.serving.gateway import Gateway
from palestra.rollout.serving.gateway_routes import episode_routes
from palestra.rollout.serving.model_replier import ModelReplier
from palestra.rollout.serving.remote_episodes import RemoteEpisodes
from palestra.tools import Tool
from palestra.types import Outcome
from palestra.verifiers import number

ROWS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(3)]

Serving = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def serving(make_engine: Any, chat_format: ChatFormat, add: Tool, tmp_path: Path) -> Serving:
    """The gateway's application; episodes are recorded in `tmp_path / "episodes.jsonl"`."""

    def make_env(split: str) -> Env:
        if split != "train":
            raise ValueError(f'there is only "train", got "{split}"')
        return ToolEnv(tasks=ROWS, tools=[add], verifier=number)

    @asynccontextmanager
    async def serving(
        engine: Any = None,
        *,
        recorder: Any = None,
        make_env: Callable[[str], Env] = make_env,
        limits: Limits | None = None,
        beside_model: bool = False,
        **options: Any,
    ) -> AsyncGenerator[httpx.AsyncClient, None]:
        policy = TokenPolicy(engine or make_engine("It is 4."), chat_format)
        gateway = Gateway(policy.engine, chat_format)
        with Recorder(tmp_path / "episodes.jsonl") as file:
            episodes = RemoteEpisodes(
                gateway,
                policy,
                make_env,
                recorder=recorder or file,
                limits=limits or Limits(),
                **options,
            )
            model = ModelReplier(policy.engine, chat_format, models=("tiny",))
            find = gateway.beside(lambda request: model) if beside_model else gateway.find_replier
            served = Served(
                find_replier=find,
                find_session=gateway.find_replier,
                models=("tiny",),
                context_length=gateway.context_length,
            )
            app = build_app(served, [episode_routes(episodes)])
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                yield client
            await episodes.aclose()

    return serving


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def watched() -> Any:
        result = await asyncio.wait_for(work, timeout=60)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(watched())


async def open_episode(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/episodes", json=fields)
    assert answer.status_code == 200, answer.text
    opened: dict[str, Any] = answer.json()
    return opened


async def say(client: httpx.AsyncClient, opened: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"model": "any", "messages": opened["messages"], **fields}
    return await client.post(f"{opened['base_url']}/chat/completions", json=body)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_an_episode_is_opened_used_closed_and_recorded(serving: Serving, tmp_path: Path) -> None:
    async def check() -> None:
        async with serving() as client:
            opened = await open_episode(client, task_id="train-2")
            assert opened["id"] == "train-2"
            assert opened["base_url"] == f"http://here/episodes/{opened['key']}/v1"
            assert opened["anthropic_base_url"] == f"http://here/episodes/{opened['key']}"
            assert opened["messages"] == [{"role": "user", "content": "What is 2 + 2?"}]
            assert opened["tools"][0]["function"]["name"] == "add"
            assert (await say(client, opened)).json()["choices"][0]["message"]["content"]
            state = (await client.get(f"/episodes/{opened['key']}")).json()
            assert (state["status"], state["turns"]) == ("open", 1)
            closed = (await client.post(f"/episodes/{opened['key']}/close", json={})).json()
            assert closed == {
                "id": "train-2/0",
                "task_id": "train-2",
                "outcome": "scored",
                "score": 1.0,
                "reward": 1.0,
                "stop_reason": "answer",
                "cause": None,
                "detail": "",
                "turns": 1,
            }
            state = (await client.get(f"/episodes/{opened['key']}")).json()
            assert (state["status"], state["result"]) == ("closed", closed)

    run(check())
    (episode,) = read_episodes(tmp_path / "episodes.jsonl")
    assert (episode.reward, len(episode.turns)) == (1.0, 1)


def test_closing_again_answers_the_same_whatever_is_said(serving: Serving, tmp_path: Path) -> None:
    async def check() -> None:
        async with serving() as client:
            opened = await open_episode(client)
            await say(client, opened)
            url = f"/episodes/{opened['key']}/close"
            at_once = await asyncio.gather(
                *(client.post(url, json={"answer": answer}) for answer in ("0", "1", "2"))
            )
            later = await client.post(url, json={"answer": "3"})
            assert {answer.text for answer in (*at_once, later)} == {later.text}
            assert later.json()["score"] == 1.0  # the first answer, 0, counts

    run(check())
    assert len(read_episodes(tmp_path / "episodes.jsonl")) == 1


def test_a_closed_episode_takes_no_requests(serving: Serving) -> None:
    async def check() -> None:
        async with serving() as client:
            opened = await open_episode(client)
            await say(client, opened)
            await client.post(f"/episodes/{opened['key']}/close", json={})
            assert code_of(await say(client, opened)) == (410, "episode_closed")

    run(check())


def test_keys_that_open_nothing_are_told_apart_from_closed_ones(serving: Serving) -> None:
    async def check() -> None:
        async with serving() as client:
            wrong = {"base_url": "/episodes/ep-guessed/v1", "messages": [{"role": "user"}]}
            wrong["messages"] = [{"role": "user", "content": "?"}]
            assert code_of(await say(client, wrong)) == (404, "unknown_episode")
            for answer in (
                await client.post("/episodes/ep-guessed/close", json={}),
                await client.get("/episodes/ep-guessed"),
            ):
                assert code_of(answer) == (404, "unknown_episode")
            body = {"model": "any", "messages": wrong["messages"]}
            for headers in ({}, {"authorization": "Bearer ep-guessed"}, {"x-api-key": "no"}):
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
                assert code_of(answer) == (401, "invalid_api_key")
            answer = await client.post(
                "/episodes/ep-guessed/v1/messages", json={**body, "max_tokens": 9}
            )
            assert answer.status_code == 404
            assert answer.json()["error"]["type"] == "not_found_error"

    run(check())


def test_the_key_is_also_an_api_key(serving: Serving) -> None:
    async def check() -> None:
        async with serving() as client:
            opened = await open_episode(client)
            body = {"model": "any", "messages": opened["messages"]}
            headers = {"authorization": f"Bearer {opened['key']}"}
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200
            closed = await client.post(f"/episodes/{opened['key']}/close", json={})
            assert closed.json()["turns"] == 1

    run(check())


def test_requests_without_an_episodes_key_go_to_the_served_model(
    serving: Serving, tmp_path: Path
) -> None:
    async def check() -> None:
        async with serving(beside_model=True) as client:
            opened = await open_episode(client)
            body = {"model": "tiny", "messages": opened["messages"]}
            keys: list[dict[str, str]] = [{"authorization": "Bearer another"}]
            keys += [{}, {"x-api-key": opened["key"]}]
            for headers in keys:
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200
            closed = await client.post(f"/episodes/{opened['key']}/close", json={})
            assert closed.json()["turns"] == 1

    run(check())


def test_tasks_are_given_out_in_turn_and_samples_counted(serving: Serving, tmp_path: Path) -> None:
    async def check() -> None:
        async with serving() as client:
            opened = [await open_episode(client) for _ in range(4)]
            assert [o["id"] for o in opened] == ["train-0", "train-1", "train-2", "train-0"]
            assert len({o["key"] for o in opened}) == 4
            for one in opened:
                await say(client, one)
                await client.post(f"/episodes/{one['key']}/close", json={})

    run(check())
    ids = [episode.id for episode in read_episodes(tmp_path / "episodes.jsonl")]
    assert ids == ["train-0/0", "train-1/0", "train-2/0", "train-0/1"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"task_id": "train-9"}, "task_id"), ({"split": "test"}, "split"), ({"tusk": 1}, "tusk")],
)
def test_what_cannot_be_opened_is_told_with_the_parameter(
    serving: Serving, fields: dict[str, Any], param: str
) -> None:
    async def check() -> None:
        async with serving() as client:
            answer = await client.post("/episodes", json=fields)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == param

    run(check())


def test_an_abandoned_episode_expires_as_failed(serving: Serving, tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(idle_timeout_s=0.3) as client:
            used, left = await open_episode(client), await open_episode(client)
            for _ in range(5):
                await asyncio.sleep(0.1)
                assert (await say(client, used)).status_code == 200
            assert (await say(client, left)).status_code == 410
            closed = (await client.post(f"/episodes/{left['key']}/close", json={})).json()
            assert (closed["outcome"], closed["cause"]) == ("failed", "agent:abandoned")
            assert closed["score"] is closed["reward"] is None
            closed = (await client.post(f"/episodes/{used['key']}/close", json={})).json()
            assert (closed["outcome"], closed["turns"]) == ("scored", 5)

    run(check())
    episodes = read_episodes(tmp_path / "episodes.jsonl")
    assert [episode.outcome for episode in episodes] == [Outcome.FAILED, Outcome.SCORED]


def test_an_engine_at_work_is_no_abandoned_episode(serving: Serving, make_engine: Any) -> None:
    async def check() -> None:
        engine = make_engine("It is 4.")
        async with serving(engine, idle_timeout_s=0.2) as client:
            opened = await open_episode(client)
            engine.gate.clear()
            saying = asyncio.create_task(say(client, opened))
            await asyncio.sleep(0.6)
            engine.gate.set()
            assert (await saying).status_code == 200

    run(check())


def test_episodes_left_open_at_the_end_are_failed_and_recorded(
    serving: Serving, tmp_path: Path
) -> None:
    async def check() -> None:
        async with serving() as client:
            opened = await open_episode(client)
            await say(client, opened)

    run(check())
    (episode,) = read_episodes(tmp_path / "episodes.jsonl")
    assert (episode.outcome, episode.cause, len(episode.turns)) == (Outcome.FAILED, "gateway", 1)


def test_more_than_may_be_open_at_once_are_refused(serving: Serving) -> None:
    async def check() -> None:
        async with serving(max_open=2) as client:
            opened = [await open_episode(client) for _ in range(2)]
            answer = await client.post("/episodes", json={})
            assert code_of(answer) == (429, "too_many_episodes")
            await client.post(f"/episodes/{opened[0]['key']}/close", json={})
            await open_episode(client)

    run(check())


def test_an_environment_that_cannot_begin_is_told(serving: Serving, tmp_path: Path) -> None:
    class Broken(ToolEnv):
        async def areset(self, **options: Any) -> Any:
            raise RuntimeError("no database")

    def make_env(split: str) -> Env:
        return Broken(tasks=ROWS, verifier=number)

    async def check() -> None:
        async with serving(make_env=make_env) as client:
            answer = await client.post("/episodes", json={})
            assert code_of(answer) == (503, "episode_failed")
            assert "no database" in answer.json()["error"]["message"]

    run(check())
    (episode,) = read_episodes(tmp_path / "episodes.jsonl")
    assert episode.outcome is Outcome.FAILED


def test_a_full_disk_is_told_and_closing_again_records(serving: Serving, tmp_path: Path) -> None:
    class Full:
        is_full = True

        def append(self, *episodes: Any) -> None:
            if self.is_full:
                raise OSError(28, "cannot write episodes (No space left on device)")

    async def check() -> None:
        recorder = Full()
        async with serving(recorder=recorder) as client:
            opened = await open_episode(client)
            await say(client, opened)
            url = f"/episodes/{opened['key']}/close"
            assert code_of(await client.post(url, json={})) == (503, "not_recorded")
            recorder.is_full = False
            assert (await client.post(url, json={})).json()["score"] == 0.0

    run(check())


def test_a_split_that_does_not_exist_is_told_when_the_server_starts(serving: Serving) -> None:
    async def check() -> None:
        async with serving(split="valid"):
            pass

    with pytest.raises(ValueError, match='there is only "train"'):
        run(check())
