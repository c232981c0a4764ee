"""The real vLLM server: exact ids and log-probabilities, sampling, cancellation, refusals."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from palestra.envs import ToolEnv
from palestra.rollout import ChatFormat, TokenPolicy, rollout
from palestra.rollout.engine_errors import (
    ConnectionLost,
    ContextOverflow,
    RequestFailed,
    UnknownToken,
    UnsupportedServer,
)
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.token_client import TokenClient
from palestra.rollout.vllm_wire import Endpoint
from palestra.tools import Tool
from palestra.types import CallShape, Completion, Episode, Sampling, Structure, Task, VersionSpan
from palestra.verifiers import number

PROMPT = tuple(range(20, 60))


@asynccontextmanager
async def attached(server: ServerProcess, **options: Any) -> AsyncGenerator[VLLMEngine, None]:
    options = {"stop_ids": frozenset(), **options}
    engine = await VLLMEngine.attach(server.base_url, **options)
    try:
        yield engine
    finally:
        await engine.aclose()


class RecordingClient(TokenClient):
    """Keeps what is sent and what comes back."""

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url)
        self.exchanges: list[tuple[Mapping[str, Any], Any]] = []

    async def post(self, path: str, body: Any = None, **options: Any) -> Any:
        answer = await super().post(path, body, **options)
        self.exchanges.append((json.loads(json.dumps(body)), answer))
        return answer


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def chat_format(tiny_model_folder: Path) -> ChatFormat:
    return ChatFormat.load(tiny_model_folder)


@torch.no_grad()
def recompute(
    model: Any, prompt: Sequence[int], ids: Sequence[int], temperature: float = 1.0
) -> list[float]:
    logits_TV = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    logprobs_TV = torch.log_softmax(logits_TV / temperature, dim=-1)
    picked: list[float] = logprobs_TV.gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist()
    return picked


def play(
    server: ServerProcess, chat_format: ChatFormat, tools: Sequence[Tool], **sampling: Any
) -> tuple[list[Episode], RecordingClient]:
    """Sixteen episodes with tools on the server, and what went over the wire."""
    tasks = [
        Task(id=str(a), messages=({"role": "user", "content": f"{a} + {a + 3} + 5?"},), answer="0")
        for a in range(10, 26)
    ]

    async def run() -> tuple[list[Episode], RecordingClient]:
        async with attached(server, stop_ids=chat_format.stop_ids) as engine:
            await engine.client.close()
            engine.client = client = RecordingClient(server.base_url)
            episodes = rollout(
                lambda: ToolEnv(
                    tasks=tasks, tools=tools, verifier=number, system_prompt="0123456789" * 14
                ),
                tasks,
                TokenPolicy(engine, chat_format),
                sampling=Sampling(max_tokens=48, **sampling),
            )
            return [episode async for episode in episodes], client

    return asyncio.run(run())


def generate(
    server: ServerProcess, sampling: Sampling, prompt: Sequence[int] = PROMPT, **options: Any
) -> Completion:
    async def run() -> Completion:
        async with attached(server, **options) as engine:
            return await engine.generate(prompt, sampling)

    return asyncio.run(run())


# --- exactness


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_episodes_record_the_ids_of_the_wire_and_logprobs_that_can_be_recomputed(
    vllm_server: ServerProcess, chat_format: ChatFormat, model: Any, add: Tool, temperature: float
) -> None:
    episodes, client = play(vllm_server, chat_format, [add], temperature=temperature, seed=3)
    turns = [turn for episode in episodes for turn in episode.turns]
    sent = sorted(tuple(body["token_ids"]) for body, _ in client.exchanges)
    returned = sorted(tuple(answer["choices"][0]["token_ids"]) for _, answer in client.exchanges)
    assert sent == sorted(turn.prompt_ids for turn in turns)
    assert returned == sorted(turn.completion_ids for turn in turns)
    assert sum(len(episode.turns) > 1 for episode in episodes) >= 8  # tools were called
    for episode in episodes:
        for turn in episode.turns:
            if turn.parent is not None:
                parent = episode.turns[turn.parent]
                known = parent.prompt_ids + parent.completion_ids
                assert turn.prompt_ids[: len(known)] == known
            expected = recompute(model, turn.prompt_ids, turn.completion_ids, temperature)
            assert turn.logprobs == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("endpoint", ["generate", "completions"])
def test_either_endpoint_answers_exact_logprobs_for_what_it_sampled(
    vllm_server: ServerProcess, model: Any, endpoint: Endpoint
) -> None:
    sampling = Sampling(temperature=0.7, max_tokens=32, seed=1)
    completion = generate(vllm_server, sampling, endpoint=endpoint)
    expected = recompute(model, PROMPT, completion.ids, 0.7)
    assert len(completion.ids) == 32
    assert completion.logprobs == pytest.approx(expected, abs=1e-3)


def test_both_endpoints_sample_the_same_from_a_seed(vllm_server: ServerProcess) -> None:
    sampling = Sampling(max_tokens=16, seed=7)
    one = generate(vllm_server, sampling, endpoint="generate")
    other = generate(vllm_server, sampling, endpoint="completions")
    assert one.ids == other.ids
    assert one.version_spans == other.version_spans


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_p=0.8, max_tokens=32, seed=2),
        Sampling(top_k=5, temperature=1.3, max_tokens=32, seed=2),
        Sampling(temperature=0.0, max_tokens=32),
    ],
    ids=["top_p", "top_k", "greedy"],
)
def test_logprobs_are_those_of_the_distribution_that_is_left_to_sample(
    vllm_server: ServerProcess, model: Any, sampling: Sampling
) -> None:
    completion = generate(vllm_server, sampling)
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*PROMPT, *completion.ids]])).logits[
            0, len(PROMPT) - 1 : -1
        ]
    for logits_V, token, logprob in zip(
        logits_TV, completion.ids, completion.logprobs, strict=True
    ):
        probs_V, order_V = (
            (logits_V / (sampling.temperature or 1)).softmax(-1).sort(descending=True)
        )
        before_V = probs_V.cumsum(-1) - probs_V
        kept_V = before_V < sampling.top_p
        if sampling.top_k:
            kept_V &= torch.arange(len(probs_V)) < sampling.top_k
        rank = order_V.tolist().index(token)
        assert kept_V[rank]
        if sampling.temperature == 0:
            assert rank == 0
        expected = (probs_V[rank] / probs_V[kept_V].sum()).log()
        assert logprob == pytest.approx(float(expected), abs=1e-3)


def test_scores_are_the_logprobs_of_the_text_at_temperature_1(
    vllm_server: ServerProcess, model: Any
) -> None:
    async def score() -> list[tuple[float, ...]]:
        async with attached(vllm_server) as engine:
            texts = [PROMPT, PROMPT * 6, PROMPT[:1], (PROMPT * 30)[:1023]]
            return [await engine.score(text) for text in texts]

    short, long, single, full = asyncio.run(score())
    assert short == pytest.approx(recompute(model, PROMPT[:1], PROMPT[1:]), abs=1e-3)
    assert long == pytest.approx(recompute(model, PROMPT[:1], (PROMPT * 6)[1:]), abs=1e-3)
    assert single == ()
    assert len(full) == 1022


def test_every_token_carries_the_version_of_its_weights(vllm_server: ServerProcess) -> None:
    async def run() -> tuple[int, Completion]:
        async with attached(vllm_server) as engine:
            return engine.version, await engine.generate(PROMPT, Sampling(max_tokens=9))

    version, completion = asyncio.run(run())
    assert completion.version_spans == (VersionSpan(version=version, start=0, end=9),)


# --- sampling


def test_a_seed_decides_what_is_sampled(vllm_server: ServerProcess) -> None:
    async def run() -> list[Completion]:
        async with attached(vllm_server) as engine:
            seeds = [1, 1, 2, 2**63 + 5]
            return [
                await engine.generate(PROMPT, Sampling(max_tokens=24, seed=seed)) for seed in seeds
            ]

    one, again, two, huge = asyncio.run(run())
    assert one.ids == again.ids
    assert len({one.ids, two.ids, huge.ids}) == 3


def test_a_group_has_n_completions_of_one_prompt_each_with_its_own_logprobs(
    vllm_server: ServerProcess, model: Any
) -> None:
    async def run() -> list[Completion]:
        async with attached(vllm_server) as engine:
            return await engine.generate_group(PROMPT, Sampling(max_tokens=16, seed=5), 6)

    group = asyncio.run(run())
    assert len({completion.ids for completion in group}) == 6
    for completion in group:
        assert completion.logprobs == pytest.approx(
            recompute(model, PROMPT, completion.ids), abs=1e-3
        )


def test_a_stop_token_ends_a_reply_and_belongs_to_it(vllm_server: ServerProcess) -> None:
    sampling = Sampling(max_tokens=64, seed=1, temperature=2.0)
    free = generate(vllm_server, sampling)
    stop = free.ids[10]
    stopped = generate(vllm_server, sampling, stop_ids=frozenset({stop}))
    assert free.stop_reason == "length"
    assert stopped.stop_reason == "stop"
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]


def test_only_the_given_tokens_stop_a_reply(
    vllm_server: ServerProcess, chat_format: ChatFormat
) -> None:
    prompt = chat_format.render([{"role": "user", "content": "10 + 13 + 5?"}])
    sampling = Sampling(max_tokens=400, temperature=2.0, seed=1)
    completion = generate(vllm_server, sampling, prompt)
    assert chat_format.stop_ids & set(completion.ids)  # the model's own end of text among them
    assert completion.stop_reason == "length"


def test_a_reply_ends_where_the_context_does(vllm_server: ServerProcess) -> None:
    completion = generate(vllm_server, Sampling(max_tokens=500), (PROMPT * 30)[:1000])
    assert completion.stop_reason == "length"
    assert len(completion.ids) == 24


@pytest.mark.parametrize("endpoint", ["generate", "completions"])
@pytest.mark.parametrize(
    "structure",
    [
        Structure(choice=("forty-two", "no idea")),
        Structure(regex=r"\d{3}-\d{2}"),
        Structure(
            json_schema={
                "type": "object",
                "properties": {"sum": {"type": "boolean"}},
                "required": ["sum"],
                "additionalProperties": False,
            }
        ),
    ],
    ids=["choice", "regex", "json_schema"],
)
def test_a_structure_is_obeyed(
    vllm_server: ServerProcess, chat_format: ChatFormat, structure: Structure, endpoint: Endpoint
) -> None:
    sampling = Sampling(max_tokens=200, seed=1, structure=structure)
    completion = generate(vllm_server, sampling, stop_ids=chat_format.stop_ids, endpoint=endpoint)
    text = chat_format.parse(completion.ids)["content"]
    if structure.choice is not None:
        assert text in structure.choice
    elif structure.regex is not None:
        assert re.fullmatch(structure.regex, text)
    else:
        assert set(json.loads(text)) == {"sum"}
    assert completion.stop_reason == "stop"


@pytest.mark.parametrize("prefix", ["<tool_call>\n", "<|call|>", ""])
def test_a_reply_of_a_schema_may_be_a_call_instead(
    vllm_server: ServerProcess, chat_format: ChatFormat, prefix: str
) -> None:
    call = CallShape(prefix=prefix, json_schema={"const": "call"}, suffix="\n</tool_call>")
    structure = Structure(json_schema={"enum": [0, 1]}, call=call)
    sampling = Sampling(max_tokens=40, temperature=2.0, structure=structure)

    async def run() -> list[Completion]:
        async with attached(vllm_server, stop_ids=chat_format.stop_ids) as engine:
            groups = [engine.generate_group(PROMPT, sampling, 32) for _ in range(4)]
            return [it for group in await asyncio.gather(*groups) for it in group]

    completions = asyncio.run(run())
    assert {completion.stop_reason for completion in completions} == {"stop"}
    said = {chat_format.text(completion.ids[:-1]) for completion in completions}
    calls = {text for text in said if not text.isdecimal()}
    assert calls == {f'{prefix}"call"\n</tool_call>'}
    assert said - calls and said - calls <= {"0", "1"}


# --- cancellation


@pytest.mark.parametrize("endpoint", ["generate", "completions"])
def test_cancelling_frees_the_engine(
    vllm_server: ServerProcess, server_counts: Any, endpoint: Endpoint
) -> None:
    async def run() -> float:
        async with attached(vllm_server, endpoint=endpoint) as engine:
            sampling = Sampling(max_tokens=900)
            before: float = await server_counts.until_idle(engine)
            tasks = [asyncio.create_task(engine.generate(PROMPT, sampling)) for _ in range(24)]
            async with asyncio.timeout(60):
                while True:
                    if await server_counts.count(engine, "generation_tokens_total") > before:
                        break
                    await asyncio.sleep(0.01)
            cut = [task for task in tasks if task.cancel()]
            await asyncio.gather(*tasks, return_exceptions=True)
            assert cut and all(task.cancelled() for task in cut)
            after: float = await server_counts.until_idle(engine)
            return after - before

    # Had they gone on all the same, they would have sampled all of it.
    assert asyncio.run(run()) < 24 * 900


# --- what is refused


def test_a_prompt_that_leaves_no_room_is_an_overflow(vllm_server: ServerProcess) -> None:
    for prompt in [(), (5,) * 1024]:
        with pytest.raises(ContextOverflow, match="does not fit"):
            generate(vllm_server, Sampling(), prompt)
    with pytest.raises(ContextOverflow, match="512"):
        generate(vllm_server, Sampling(), (5,) * 512, context_length=512)


@pytest.mark.parametrize("endpoint", ["generate", "completions"])
def test_an_id_outside_the_vocabulary_is_refused_by_name(
    vllm_server: ServerProcess, endpoint: Endpoint
) -> None:
    with pytest.raises(UnknownToken, match="99999"):
        generate(vllm_server, Sampling(), (5, 99999), endpoint=endpoint)


def test_a_context_longer_than_the_servers_is_refused(vllm_server: ServerProcess) -> None:
    with pytest.raises(UnsupportedServer, match="--max-model-len 2048"):
        generate(vllm_server, Sampling(), context_length=2048)


def test_what_the_server_says_is_in_the_error(vllm_server: ServerProcess) -> None:
    async def run() -> None:
        async with attached(vllm_server) as engine:
            engine.model_name = "another"
            await engine.generate(PROMPT, Sampling())

    with pytest.raises(RequestFailed, match="`another` does not exist") as raised:
        asyncio.run(run())
    assert raised.value.status == 404


def test_no_server_is_a_lost_connection() -> None:
    async def run() -> None:
        client = TokenClient("http://127.0.0.1:9", retry_s=0)
        try:
            await client.get("/version", timeout_s=5)
        finally:
            await client.close()

    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:9 cannot be reached"):
        asyncio.run(run())
