"""The real SGLang server: exact ids and log-probabilities, sampling, cancellation, refusals."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import torch
from jsonschema import Draft202012Validator

from palestra.envs import ToolEnv
from palestra.rollout import ChatFormat, TokenPolicy, rollout
from palestra.rollout.engine_errors import (
    BadAnswer,
    BadLogprobs,
    ContextOverflow,
    UnknownToken,
    UnsupportedServer,
)
from palestra.rollout.engine_sglang import SGLangEngine
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.sglang_wire import read_completion, read_scores
from palestra.rollout.token_client import TokenClient
from palestra.tools import Tool
from palestra.types import CallShape, Completion, Episode, Sampling, Structure, Task
from palestra.verifiers import number

from .conftest import CONTEXT_LENGTH, Weights, wait_until_running

T = TypeVar("T")

PROMPT = tuple(range(20, 60))

pytestmark = pytest.mark.slow


@asynccontextmanager
async def attached(server: ServerProcess, **options: Any) -> AsyncGenerator[SGLangEngine, None]:
    engine = await SGLangEngine.attach(
        server.base_url, **{"stop_ids": frozenset(), "timeout_s": 120.0, **options}
    )
    try:
        yield engine
    finally:
        await engine.aclose()


def on(server: ServerProcess, work: Callable[[SGLangEngine], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        async with attached(server, **options) as engine:
            return await work(engine)

    return asyncio.run(run())


class RecordingClient(TokenClient):
    """Keeps what is sent and what comes back."""

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url)
        self.exchanges: list[tuple[Mapping[str, Any], Any]] = []

    async def post(self, path: str, body: Any = None, **options: Any) -> Any:
        answer = await super().post(path, body, **options)
        self.exchanges.append((json.loads(json.dumps(body)), answer))
        return answer


async def record(engine: SGLangEngine) -> RecordingClient:
    await engine.client.close()
    engine.client = client = RecordingClient(engine.client.base_url)
    return client


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_episodes_record_the_ids_of_the_wire_and_logprobs_that_can_be_recomputed(
    sglang_server: ServerProcess, old: Weights, add: Tool, temperature: float
) -> None:
    chat_format = ChatFormat.load(old.folder)
    tasks = [
        Task(id=str(a), messages=({"role": "user", "content": f"{a} + {a + 3} + 5?"},), answer="0")
        for a in range(10, 26)
    ]

    async def play(engine: SGLangEngine) -> tuple[list[Episode], RecordingClient]:
        client = await record(engine)
        episodes = rollout(
            lambda: ToolEnv(
                tasks=tasks, tools=[add], verifier=number, system_prompt="0123456789" * 14
            ),
            tasks,
            TokenPolicy(engine, chat_format),
            sampling=Sampling(max_tokens=48, temperature=temperature),
        )
        return [episode async for episode in episodes], client

    episodes, client = on(sglang_server, play, stop_ids=chat_format.stop_ids)
    turns = [turn for episode in episodes for turn in episode.turns]
    sent = sorted(tuple(body["input_ids"]) for body, _ in client.exchanges)
    returned = sorted(tuple(answer["output_ids"]) for _, answer in client.exchanges)
    assert sent == sorted(turn.prompt_ids for turn in turns)
    assert returned == sorted(turn.completion_ids for turn in turns)
    assert sum(len(episode.turns) > 1 for episode in episodes) >= 8  # tools were called
    for episode in episodes:
        for turn in episode.turns:
            if turn.parent is not None:
                parent = episode.turns[turn.parent]
                known = parent.prompt_ids + parent.completion_ids
                assert turn.prompt_ids[: len(known)] == known
            expected = old.logprobs(turn.prompt_ids, turn.completion_ids, temperature)
            assert turn.logprobs == pytest.approx(expected, abs=1e-3)


def test_logprobs_are_those_of_the_distribution_that_each_of_a_batch_is_drawn_from(
    sglang_server: ServerProcess, old: Weights
) -> None:
    """Different temperatures and cuts at once: SGLang samples them in one batch."""
    samplings = [
        Sampling(max_tokens=40),
        Sampling(max_tokens=40, temperature=0.7),
        Sampling(max_tokens=40, temperature=0.0),
        Sampling(max_tokens=40, top_p=0.8),
        Sampling(max_tokens=40, top_k=5, temperature=1.3),
        Sampling(max_tokens=40, top_k=20, top_p=0.9),
    ] * 3

    async def sample(engine: SGLangEngine) -> list[Completion]:
        return await asyncio.gather(*(engine.generate(PROMPT, s) for s in samplings))

    for sampling, completion in zip(samplings, on(sglang_server, sample), strict=True):
        assert len(completion.ids) == 40
        logprobs_TV = old.distributions(PROMPT, completion.ids, sampling.temperature or 1.0)
        for logprobs_V, token, logprob in zip(
            logprobs_TV, completion.ids, completion.logprobs, strict=True
        ):
            probs_V, order_V = logprobs_V.exp().sort(descending=True)
            kept_V = probs_V.cumsum(-1) - probs_V < sampling.top_p
            if sampling.top_k:
                kept_V &= torch.arange(len(probs_V)) < sampling.top_k
            rank = order_V.tolist().index(token)
            assert kept_V[rank]
            assert rank == 0 or sampling.temperature > 0
            expected = (probs_V[rank] / probs_V[kept_V].sum()).log()
            assert logprob == pytest.approx(float(expected), abs=1e-3)


def test_scores_are_the_logprobs_of_the_text_at_temperature_1(
    sglang_server: ServerProcess, old: Weights
) -> None:
    full = (PROMPT * 30)[: CONTEXT_LENGTH - 3]
    last = int(old.model.config.vocab_size) - 1  # SGLang names it 0 in its answer
    full = (0, last, *full, last)

    async def score(engine: SGLangEngine) -> list[tuple[float, ...]]:
        return [await engine.score(text) for text in (PROMPT, PROMPT[:1], full)]

    short, single, long = on(sglang_server, score)
    assert single == ()
    assert short == pytest.approx(old.logprobs(PROMPT[:1], PROMPT[1:]), abs=1e-3)
    assert long == pytest.approx(old.logprobs(full[:1], full[1:]), abs=1e-3)


def test_a_stop_token_ends_a_reply_and_is_part_of_it(
    sglang_server: ServerProcess, old: Weights
) -> None:
    greedy = old.greedy(PROMPT, 12)
    stop = greedy[8]
    end = greedy.index(stop) + 1
    sampling = Sampling(temperature=0.0, max_tokens=12)
    completion = on(
        sglang_server, lambda engine: engine.generate(PROMPT, sampling), stop_ids=frozenset([stop])
    )
    assert completion.ids == greedy[:end]
    assert completion.stop_reason == "stop"


def test_a_completion_fills_the_context_and_no_more(sglang_server: ServerProcess) -> None:
    longest = (PROMPT * 30)[: CONTEXT_LENGTH - 1]

    async def generate(engine: SGLangEngine) -> tuple[int, list[Completion]]:
        prompts = (longest, longest[:-5])
        sampling = Sampling(max_tokens=50)
        return engine.context_length, [await engine.generate(p, sampling) for p in prompts]

    context_length, completions = on(sglang_server, generate)
    assert context_length == CONTEXT_LENGTH
    assert [len(completion.ids) for completion in completions] == [1, 6]
    assert {completion.stop_reason for completion in completions} == {"length"}


@pytest.mark.parametrize("n_tokens", [0, CONTEXT_LENGTH, CONTEXT_LENGTH + 50])
def test_a_prompt_without_room_is_refused(sglang_server: ServerProcess, n_tokens: int) -> None:
    prompt = (PROMPT * 30)[:n_tokens]
    with pytest.raises(ContextOverflow, match=f"a prompt of {n_tokens} tokens does not fit"):
        on(sglang_server, lambda engine: engine.generate(prompt, Sampling()))


def test_a_group_samples_n_replies_from_a_prompt_that_is_computed_once(
    sglang_server: ServerProcess, old: Weights
) -> None:
    prompt = tuple(reversed(PROMPT)) * 4

    async def group(engine: SGLangEngine) -> tuple[list[Completion], RecordingClient]:
        client = await record(engine)
        await engine.control.post("/flush_cache", timeout_s=60)
        return await engine.generate_group(prompt, Sampling(max_tokens=20), 6), client

    completions, client = on(sglang_server, group)
    assert len({completion.ids for completion in completions}) == 6
    for completion in completions:
        expected = old.logprobs(prompt, completion.ids)
        assert completion.logprobs == pytest.approx(expected, abs=1e-3)
    computed = [
        answer["meta_info"]["prompt_tokens"] - answer["meta_info"]["cached_tokens"]
        for _, answer in client.exchanges
    ]
    assert computed == [len(prompt), *[1] * 6]


def test_a_seed_is_sent_and_whether_it_counts_is_known(sglang_server: ServerProcess) -> None:
    """A CPU has no deterministic inference, and without it SGLang ignores seeds."""

    async def sample(engine: SGLangEngine) -> tuple[bool, RecordingClient]:
        client = await record(engine)
        await engine.generate(PROMPT, Sampling(max_tokens=2, seed=2**63 + 5))
        await engine.generate_group(PROMPT, Sampling(max_tokens=2, seed=7), 2)
        return engine.traits.seeded, client

    seeded, client = on(sglang_server, sample)
    seeds = [body["sampling_params"].get("sampling_seed") for body, _ in client.exchanges]
    assert not seeded
    assert seeds == [5, None, 7, 8]


SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2, 3]}, "ok": {"type": "boolean"}},
    "required": ["a", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("structure", "fits"),
    [
        (
            Structure(json_schema=SCHEMA),
            lambda t: Draft202012Validator(SCHEMA).is_valid(json.loads(t)),
        ),
        (Structure(regex="[0-9]{2}-[ab]+c"), lambda t: bool(re.fullmatch("[0-9]{2}-[ab]+c", t))),
        (Structure(choice=("7 + 1?", "(no)")), lambda text: text in ("7 + 1?", "(no)")),
        (
            Structure(
                json_schema={"const": 42},
                call=CallShape(prefix="<c>\n", json_schema={"const": "call"}, suffix="\n</c>"),
            ),
            lambda text: text in ("42", '<c>\n"call"\n</c>'),
        ),
    ],
    ids=["json_schema", "regex", "choice", "json_schema or call"],
)
def test_a_structure_shapes_the_reply(
    sglang_server: ServerProcess, old: Weights, structure: Structure, fits: Callable[[str], bool]
) -> None:
    chat_format = ChatFormat.load(old.folder)
    sampling = Sampling(max_tokens=200, structure=structure, temperature=0.7)

    async def group(engine: SGLangEngine) -> list[Completion]:
        return await engine.generate_group(PROMPT, sampling, 4)

    completions = on(sglang_server, group, stop_ids=chat_format.stop_ids)
    ended = [completion for completion in completions if completion.stop_reason == "stop"]
    assert ended
    for completion in ended:
        assert fits(str(chat_format.parse(completion.ids)["content"]))


def test_cancelling_frees_the_server_at_once(sglang_server: ServerProcess) -> None:
    async def cancel(engine: SGLangEngine) -> float:
        work = asyncio.create_task(engine.generate_group(PROMPT, Sampling(max_tokens=900), 8))
        await wait_until_running(engine, 8)
        work.cancel()
        return await wait_until_running(engine, 0)

    # SGLang itself looks for closed connections every four seconds.
    assert on(sglang_server, cancel) < 3


def test_a_token_beyond_the_vocabulary_is_refused_and_the_server_lives(
    sglang_server: ServerProcess,
) -> None:
    async def provoke(engine: SGLangEngine) -> None:
        vocab_size = engine.traits.vocab_size
        for bad in (vocab_size, -1):
            with pytest.raises(UnknownToken, match=f"token {bad} is not in the vocabulary"):
                await engine.generate([1, bad, 2], Sampling(max_tokens=1))
            with pytest.raises(UnknownToken, match=f"token {bad} is not in the vocabulary"):
                await engine.score([1, bad, 2])
            with pytest.raises(UnknownToken, match=f"token {bad} is not in the vocabulary"):
                await engine.generate_group([1, bad], Sampling(max_tokens=1), 2)
        await engine.generate([1, vocab_size - 1], Sampling(max_tokens=1))

    on(sglang_server, provoke)


def test_an_answer_that_cannot_be_trained_on_is_refused(sglang_server: ServerProcess) -> None:
    """A real answer, spoiled in one place each time."""

    async def answer(engine: SGLangEngine) -> tuple[Any, Any, int]:
        client = await record(engine)
        await engine.generate(PROMPT, Sampling(max_tokens=3))
        await engine.score(PROMPT)
        return client.exchanges[0][1], client.exchanges[1][1], engine.traits.vocab_size

    real, scored, vocab_size = on(sglang_server, answer)

    def read(change: Callable[[Any], object], truncated: bool = False) -> Completion:
        spoiled = json.loads(json.dumps(real))
        change(spoiled)
        return read_completion(
            spoiled, vocab_size=vocab_size, truncated=truncated, version_of=lambda _: 0
        )

    assert read(lambda _: None).ids == tuple(real["output_ids"])
    told = "output_token_logprobs"
    with pytest.raises(BadLogprobs, match=f"no {told}"):
        read(lambda a: a["meta_info"].pop(told))
    with pytest.raises(BadLogprobs, match="2 log-probabilities for 3 tokens"):
        read(lambda a: a["meta_info"][told].pop())
    with pytest.raises(BadLogprobs, match="token 1 is None: not a number"):
        read(lambda a: a["meta_info"][told][1].__setitem__(0, None))
    with pytest.raises(BadLogprobs, match="token 2 is nan: not a number"):
        read(lambda a: a["meta_info"][told][2].__setitem__(0, float("nan")))
    with pytest.raises(BadLogprobs, match="those of other tokens"):
        read(lambda a: a["output_ids"].__setitem__(0, (a["output_ids"][0] + 1) % vocab_size))
    with pytest.raises(BadLogprobs, match="no log-probabilities for 3 tokens"):
        read(lambda _: None, truncated=True)
    with pytest.raises(UnknownToken, match="SGLang sampled token 99999"):
        read(lambda a: a["output_ids"].__setitem__(0, 99_999))
    with pytest.raises(BadAnswer, match="weight_versions"):
        read(lambda a: a["meta_info"].pop("weight_versions"))
    with pytest.raises(BadAnswer, match="unknown reason: 'tired'"):
        read(lambda a: a["meta_info"]["finish_reason"].__setitem__("type", "tired"))
    scored["meta_info"]["input_token_logprobs"][5][0] = None
    with pytest.raises(BadLogprobs, match="not a number"):
        read_scores(scored, PROMPT)


def test_a_context_longer_than_the_servers_is_refused(sglang_server: ServerProcess) -> None:
    with pytest.raises(UnsupportedServer, match=f"takes {CONTEXT_LENGTH} tokens, 1001 are needed"):
        on(sglang_server, lambda _: asyncio.sleep(0), context_length=CONTEXT_LENGTH + 1)
