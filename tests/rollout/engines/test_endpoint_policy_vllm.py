"""`EndpointPolicy` against a real vLLM server that parses tool calls itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from palestra.envs import ToolEnv
from palestra.rollout import ContextFull, EndpointPolicy, run_episode, tool_call
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.vllm_launch import vllm_command, vllm_environment
from palestra.tools import tool
from palestra.types import Failure, Message, Outcome, Sampling, Structure, Task, Turn
from palestra.verifiers import exact

pytestmark = pytest.mark.slow

CONTEXT_LENGTH = 1024
PROMPT: Message = {"role": "user", "content": "12 + 30 + 4?"}
TASK = Task(id="t", messages=(PROMPT,), answer="46")


@tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@pytest.fixture(scope="module")
def base_url(
    tiny_model_folder: Path, vllm_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    server = ServerProcess(
        vllm_command(
            tiny_model_folder,
            python=vllm_python,
            dtype="float32",
            context_length=CONTEXT_LENGTH,
            max_concurrent=8,
            kv_cache_gib=1 / 16,
            extra_args=("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        ),
        name="vLLM",
        log_path=tmp_path_factory.mktemp("vllm") / "vllm.log",
        env={**vllm_environment(), "OMP_NUM_THREADS": "1"},
    )
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(server.start())
        yield f"{server.base_url}/v1"
    finally:
        loop.run_until_complete(server.stop())
        loop.close()


def respond(
    base_url: str, sampling: Sampling, prompt: Message = PROMPT, model: str = "model"
) -> Turn:
    policy = EndpointPolicy(base_url, model, api_key="none")
    return asyncio.run(policy.respond([prompt], [add.schema()], task=TASK, sampling=sampling))


def test_a_call_of_the_model_arrives_as_a_native_one(base_url: str) -> None:
    """Its text is forced: whatever the model would say."""
    forced = Structure(choice=(tool_call("add", a=12, b=30),))
    turn = respond(base_url, Sampling(structure=forced, max_tokens=200))
    [call] = turn.message["tool_calls"]
    assert call["function"]["name"] == "add"
    assert call["function"]["arguments"] == '{"a": 12, "b": 30}'
    assert turn.stop_reason == "stop" and "error" not in call
    assert turn.usage["prompt_tokens"] > 0 and turn.usage["completion_tokens"] > 10
    assert turn.prompt_ids == turn.completion_ids == ()


def test_malformed_calls_come_back_and_the_server_takes_the_conversation(base_url: str) -> None:
    """Forced calls of an unknown tool, turn after turn: each is answered, none breaks it."""
    forced = Structure(choice=(tool_call("subtract", a=1),))
    env = ToolEnv(tasks=[TASK], tools=[add], verifier=exact, max_turns=3)
    policy = EndpointPolicy(base_url, "model", api_key="none")
    sampling = Sampling(structure=forced, max_tokens=200)
    episode = asyncio.run(run_episode(env, policy, TASK, sampling=sampling))
    assert (episode.outcome, episode.stop_reason) == (Outcome.SCORED, "max_turns"), episode.detail
    assert episode.tool_errors() == {"unknown_tool": 3}


def test_a_reply_cut_by_its_limit_says_so(base_url: str) -> None:
    turn = respond(base_url, Sampling(structure=Structure(regex="[0-9]{400}"), max_tokens=20))
    assert turn.stop_reason == "length"
    assert turn.usage["completion_tokens"] == 20


def test_the_context_bounds_prompt_and_reply(base_url: str) -> None:
    with pytest.raises(ContextFull, match="1024"):
        respond(base_url, Sampling(), {"role": "user", "content": "1" * 1200})
    digits = Structure(regex="[0-9]{2000}")
    prompt: Message = {"role": "user", "content": "1" * 600}
    turn = respond(base_url, Sampling(structure=digits, max_tokens=1000), prompt)
    assert turn.stop_reason == "length"
    assert turn.usage["prompt_tokens"] + turn.usage["completion_tokens"] == CONTEXT_LENGTH


def test_a_model_that_is_not_served_is_told(base_url: str) -> None:
    with pytest.raises(Failure, match="does it serve 'other'") as caught:
        respond(base_url, Sampling(), model="other")
    assert caught.value.cause == "endpoint:not_found"
