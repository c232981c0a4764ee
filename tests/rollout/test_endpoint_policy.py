"""Against real servers on loopback that answer as OpenAI-compatible ones do, and misbehave."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from palestra.endpoint import Endpoint, Price
from palestra.endpoint.scripted import Scripted, ScriptedServer
from palestra.envs import ToolEnv
from palestra.rollout import ContextFull, EndpointPolicy, run_episode, tool_call
from palestra.rollout.evaluate import evaluate
from palestra.tools import tool
from palestra.trainer.batch import rows_of
from palestra.types import Episode, Failure, Message, Outcome, Sampling, Structure, Task, Turn
from palestra.verifiers import exact

PROMPT: Message = {"role": "user", "content": "17 + 25?"}
TASK = Task(id="t", messages=(PROMPT,), answer="42")
SAMPLING = Sampling()


@tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@tool
async def now() -> str:
    """The time."""
    return "noon"


def make_env() -> ToolEnv:
    return ToolEnv(tasks=[TASK], tools=[add, now], verifier=exact)


def native(name: Any, arguments: Any, call_id: Any = "call_x") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: Any, **options: Any) -> Scripted:
    return Scripted(text=None, tool_calls=list(calls), **{"finish_reason": "tool_calls", **options})


def in_order(answers: Sequence[str | Scripted]) -> Callable[[Any], str | Scripted]:
    remaining = iter(answers)
    return lambda body: next(remaining)


def play(*answers: str | Scripted, **options: Any) -> tuple[Episode, list[dict[str, Any]]]:
    """An episode whose replies are these, and the bodies that were sent."""
    with ScriptedServer(in_order(answers)) as server:
        endpoint = Endpoint(server.base_url, "secret-key", **options)
        policy = EndpointPolicy(endpoint, "m")
        episode = asyncio.run(run_episode(make_env(), policy, TASK))
    return episode, server.requests


def respond(
    answer: Callable[[Any], str | Scripted], sampling: Sampling = SAMPLING, **options: Any
) -> tuple[Turn, list[dict[str, Any]]]:
    with ScriptedServer(answer) as server:
        policy = EndpointPolicy(Endpoint(server.base_url, "k", attempts=2), "m", **options)
        turn = asyncio.run(policy.respond([PROMPT], [], task=TASK, sampling=sampling))
    return turn, server.requests


def test_native_calls_run_and_their_results_go_back() -> None:
    episode, bodies = play(
        calling(native("add", '{"a": 17, "b": 25}', "id1"), native("now", "", "id2")), "42"
    )
    assert episode.outcome is Outcome.SCORED and episode.reward == 1.0
    assert [result.content for result in episode.turns[0].tool_results] == ["42", "noon"]
    assert [t["function"]["name"] for t in bodies[0]["tools"]] == ["add", "now"]
    assistant, first, second = bodies[1]["messages"][-3:]
    assert assistant["content"] is None
    assert [call["id"] for call in assistant["tool_calls"]] == ["id1", "id2"]
    assert (first["role"], first["tool_call_id"], first["content"]) == ("tool", "id1", "42")
    assert (second["tool_call_id"], second["content"]) == ("id2", "noon")


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (native("add", '{"a": 1, '), "bad_json"),
        (native("add", "[1, 2]"), "bad_json"),
        (native("add", {"a": "x", "b": 2}), "bad_arguments"),
        (native("subtract", "{}"), "unknown_tool"),
        (native("a tool of" + " many words" * 50, "{}"), "unknown_tool"),
        (native("", "{}"), "bad_json"),
        (native(None, None), "bad_json"),
        ({"function": 7}, "bad_json"),
        ("no call at all", "bad_json"),
        (native("add", "[" * 100_000), "bad_json"),
        (native("\ud800", '{"a": "\ud800"}'), "unknown_tool"),
    ],
)
def test_a_malformed_call_is_counted_and_goes_back_well_formed(call: Any, kind: str) -> None:
    episode, bodies = play(calling(call), "42")
    assert episode.outcome is Outcome.SCORED and episode.reward == 1.0
    assert episode.tool_errors() == {kind: 1}
    assert Episode.from_json(episode.to_json()) == episode
    [sent] = bodies[1]["messages"][-2]["tool_calls"]
    assert sent.keys() == {"id", "type", "function"}
    assert isinstance(json.loads(sent["function"]["arguments"]), dict)
    assert 1 <= len(sent["function"]["name"]) <= 64
    assert sent["function"]["name"].replace("-", "_").replace("_", "a").isalnum()
    assert bodies[1]["messages"][-1]["tool_call_id"] == sent["id"]


def test_calls_that_share_an_id_are_told_apart() -> None:
    calls = [native("now", "{}", call_id) for call_id in ("x", "x", None, 7)]
    _, bodies = play(calling(*calls), "42")
    ids = [call["id"] for call in bodies[1]["messages"][1]["tool_calls"]]
    assert len(set(ids)) == 4
    assert [m["tool_call_id"] for m in bodies[1]["messages"][2:]] == ids


def test_hermes_calls_in_the_text_of_a_server_without_a_parser_are_read() -> None:
    episode, bodies = play("<think>hm</think>" + tool_call("add", a=1, b=2), "42")
    assert [r.content for r in episode.turns[0].tool_results] == ["3"]
    assert episode.turns[0].message["reasoning_content"] == "hm"
    assert bodies[1]["messages"][-2]["tool_calls"][0]["function"]["name"] == "add"


@pytest.mark.parametrize("sends", [False, True])
def test_reasoning_is_kept_and_goes_back_only_on_demand(sends: bool) -> None:
    answers: list[str | Scripted] = [
        calling(native("now", "{}"), reasoning_content="because"),
        "42",
    ]
    with ScriptedServer(in_order(answers)) as server:
        policy = EndpointPolicy(server.base_url, "m", api_key="k", sends_reasoning=sends)
        episode = asyncio.run(run_episode(make_env(), policy, TASK))
    assert episode.turns[0].message["reasoning_content"] == "because"
    assert ("reasoning_content" in server.requests[1]["messages"][1]) is sends


def test_a_reply_cut_by_its_limit_ends_the_episode_as_length() -> None:
    episode, _ = play(Scripted(text="and then", finish_reason="length"))
    assert (episode.outcome, episode.stop_reason) == (Outcome.SCORED, "length")
    cut, _ = play(calling(native("add", '{"a": 1'), finish_reason="length"))
    assert (cut.stop_reason, cut.tool_errors()) == ("length", {"cut": 1})


@pytest.mark.parametrize(
    ("answer", "stop_reason", "content"),
    [
        (Scripted(text=None, refusal="I will not."), "refusal", "I will not."),
        (Scripted(text="so far", finish_reason="content_filter"), "content_filter", "so far"),
        (Scripted(status=400, error={"code": "content_filter"}), "content_filter", ""),
    ],
)
def test_a_refusal_or_a_filtered_reply_is_an_answer(
    answer: Scripted, stop_reason: str, content: str
) -> None:
    episode, _ = play(answer)
    assert (episode.outcome, episode.reward) == (Outcome.SCORED, 0.0)
    assert episode.turns[0].stop_reason == stop_reason
    assert episode.turns[0].message["content"] == content


def test_sampling_is_sent_as_the_server_names_it() -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=20, max_tokens=7, seed=3)
    turn, [body] = respond(lambda body: "hi", sampling, extra={"min_p": 0.1})
    sent = {key: body[key] for key in ("temperature", "top_p", "top_k", "max_tokens", "seed")}
    assert sent == {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "max_tokens": 7, "seed": 3}
    assert body["min_p"] == 0.1
    assert turn.sampling == sampling
    _, [body] = respond(lambda body: "hi")
    assert not body.keys() & {"top_p", "top_k", "seed", "tools", "structured_outputs"}


@pytest.mark.parametrize(
    ("structure", "parameter", "expected"),
    [
        (Structure(choice=("a", "b")), "structured_outputs", {"choice": ["a", "b"]}),
        (Structure(regex="a+"), "structured_outputs", {"regex": "a+"}),
    ],
)
def test_a_structure_is_asked_for(structure: Structure, parameter: str, expected: Any) -> None:
    _, [body] = respond(lambda body: "a", Sampling(structure=structure))
    assert body[parameter] == expected
    schema = {"type": "object"}
    _, [body] = respond(lambda body: "{}", Sampling(structure=Structure(json_schema=schema)))
    assert body["response_format"]["json_schema"]["schema"] == schema


def test_a_model_that_takes_no_seed_is_asked_without_one() -> None:
    def answer(body: Any) -> str | Scripted:
        return Scripted(status=400, error={"param": "seed"}) if "seed" in body else "hi"

    turn, bodies = respond(answer, Sampling(seed=5))
    assert turn.message["content"] == "hi" and len(bodies) == 2


OVERFLOWS = {
    "vllm": {
        "message": "This model's maximum context length is 1024 tokens. However, your prompt "
        "contains at least 1025 input tokens, which exceeds this limit even without any output "
        "tokens. Please reduce the length of the input prompt.",
        "type": "BadRequestError",
    },
    "openai": {"message": "Your input is over the limit", "code": "context_length_exceeded"},
    "llama.cpp": {"message": "the request exceeds the available context size, try increasing it"},
    "sglang": {"message": "Input length (700) is longer than the model's context length (512)"},
}


@pytest.mark.parametrize("error", OVERFLOWS.values(), ids=OVERFLOWS.keys())
def test_a_conversation_that_fills_the_context_is_scored_as_out_of_context(
    error: dict[str, Any],
) -> None:
    episode, bodies = play(calling(native("now", "{}")), Scripted(status=400, error=error))
    assert (episode.outcome, episode.stop_reason) == (Outcome.SCORED, "context")
    assert len(bodies) == 2
    with pytest.raises(ContextFull):
        respond(lambda body: Scripted(status=400, error=error))


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' is too large: 512. This model's maximum context length is 1024 tokens and "
        "your request has 1000 input tokens (512 > 1024 - 1000).",
        "This model's maximum context length is 1024 tokens. However, you requested 1512 tokens "
        "(1000 in the messages, 512 in the completion).",
    ],
)
def test_less_is_asked_for_where_the_context_has_room_for_less(message: str) -> None:
    def answer(body: Any) -> str | Scripted:
        if body["max_tokens"] > 24:
            return Scripted(status=400, error={"message": message})
        return "fits"

    turn, bodies = respond(answer)
    assert turn.message["content"] == "fits"
    assert [body["max_tokens"] for body in bodies] == [512, 24]


@pytest.mark.parametrize(
    ("answer", "cause", "words"),
    [
        (
            Scripted(status=401, error={"message": "bad key secret-key"}),
            "endpoint:unauthorized",
            "check the key",
        ),
        (Scripted(status=404, error={"message": "no m"}), "endpoint:not_found", "serve 'm'"),
        (
            Scripted(status=429, error={"code": "insufficient_quota"}),
            "endpoint:quota",
            "nothing left to spend",
        ),
    ],
)
def test_what_no_request_will_survive_is_one_failure_and_asked_once(
    answer: Scripted, cause: str, words: str
) -> None:
    with ScriptedServer(lambda body: answer) as server:
        policy = EndpointPolicy(server.base_url, "m", api_key="secret-key")
        for _ in range(3):
            with pytest.raises(Failure, match=words) as caught:
                asyncio.run(policy.respond([PROMPT], [], task=TASK, sampling=Sampling()))
            assert caught.value.cause == cause
            assert "secret-key" not in str(caught.value)
            assert "\n" not in str(caught.value) and server.base_url in str(caught.value)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_given_up_by_all_episodes_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        policy = EndpointPolicy(Endpoint(url, "k", attempts=1), "m")
        for _ in range(3):
            with pytest.raises(Failure, match="is the server running") as caught:
                asyncio.run(policy.respond([PROMPT], [], task=TASK, sampling=Sampling()))
            assert caught.value.cause == "endpoint:unreachable"
    assert policy.usage.requests == 1


def test_what_passes_is_retried_and_what_does_not_masks_only_its_episode() -> None:
    busy = Scripted(status=429, headers={"retry-after-ms": "1"})
    episode, bodies = play(busy, Scripted(status=500), "42", attempts=3)
    assert (episode.outcome, len(bodies)) == (Outcome.SCORED, 3)
    with ScriptedServer(in_order([Scripted(status=500), "42"])) as server:
        policy = EndpointPolicy(Endpoint(server.base_url, "k", attempts=1), "m")
        evaluation = asyncio.run(evaluate(make_env, [TASK], policy))
    assert (evaluation.mean, evaluation.retried) == (1.0, {"endpoint:server": 1})


def test_tokens_and_cost_are_told_for_each_turn_episode_and_evaluation() -> None:
    def answer(body: Any) -> str | Scripted:
        return "42" if len(body["messages"]) > 1 else calling(native("now", "{}"))

    with ScriptedServer(answer) as server:
        prices = {"m": Price(prompt=10_000.0, completion=50_000.0)}
        policy = EndpointPolicy(Endpoint(server.base_url, "k", prices=prices), "m")
        episodes: list[Episode] = []
        evaluation = asyncio.run(
            evaluate(make_env, [TASK], policy, n_per_task=2, on_episode=episodes.append)
        )
    for turn in episodes[0].turns:
        assert turn.usage == pytest.approx(
            {"prompt_tokens": 100, "completion_tokens": 10, "cost": 1.5}
        )
    assert evaluation.usage == pytest.approx(
        {"prompt_tokens": 400, "completion_tokens": 40, "cost": 6.0}
    )
    assert evaluation.mean_tokens == 20
    assert policy.usage.requests == 4
    assert policy.usage.cost == pytest.approx(6.0)


def test_its_episodes_cannot_be_trained_on_and_are_told_why() -> None:
    episode, _ = play("42")
    with pytest.raises(ValueError, match=r"has no token ids: only episodes of a policy that"):
        rows_of(episode, advantage=1.0)


def test_arguments_that_cannot_work_are_refused() -> None:
    for url, model, words in [
        ("localhost:8000", "m", "must start with http"),
        ("http://localhost/v1", "", "needs the name of a model"),
    ]:
        with pytest.raises(ValueError, match=words):
            EndpointPolicy(url, model, api_key="k")
    with pytest.raises(ValueError, match="has its own key"):
        EndpointPolicy(Endpoint("http://localhost/v1", "k"), "m", api_key="other")


def test_a_cached_episode_is_the_same_calls_included_and_costs_nothing(tmp_path: Path) -> None:
    call = native("add", '{"a": 17, "b": 25}')
    answers: list[str | Scripted] = [
        calling(call, finish_reason="stop", reasoning_content="sum"),
        "42",
    ]
    with ScriptedServer(in_order(answers)) as server:
        endpoint = Endpoint(server.base_url, "k", cache=tmp_path)
        policy = EndpointPolicy(endpoint, "m")
        first, again = (asyncio.run(run_episode(make_env(), policy, TASK)) for _ in range(2))
    assert len(server.requests) == 2
    assert first.messages == again.messages and again.reward == 1.0
    assert again.turns[0].message["reasoning_content"] == "sum"
    assert again.turns[0].usage["completion_tokens"] == 0
