"""Finds out what a running vLLM server is, has and serves, and whether it can be trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palestra.rollout.engine_errors import RequestFailed, UnsupportedServer
from palestra.rollout.logprob_probe import PROBE_TEMPERATURE, require_processed
from palestra.rollout.served_engine import read_vocab_size
from palestra.rollout.token_client import TokenClient
from palestra.rollout.vllm_wire import PATHS, Endpoint, generate_body, read_top_logprobs
from palestra.types import Sampling

OLDEST_VERSION = (0, 32)

_PROBE_IDS = tuple(range(8))
_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """What a server serves; `vocab_size` is None where the model's folder is not to be read."""

    name: str
    context_length: int
    vocab_size: int | None


async def require_version(client: TokenClient) -> None:
    """Raises UnsupportedServer unless it is vLLM and new enough."""
    where = client.base_url
    oldest = ".".join(map(str, OLDEST_VERSION))
    try:
        answer = await client.get("/version", timeout_s=_TIMEOUT_S)
        told = str(answer["version"])
        version = tuple(int(part) for part in told.split("+")[0].split(".")[:2])
    except (RequestFailed, TypeError, KeyError, ValueError) as error:
        raise UnsupportedServer(
            f"{where} is no vLLM server: it does not say its version ({error})"
        ) from None
    if version < OLDEST_VERSION:
        raise UnsupportedServer(f"{where} is vLLM {told}, {oldest} or newer is needed")


async def read_model(client: TokenClient) -> ServedModel:
    """The base model. Raises UnsupportedServer if the server does not tell."""
    answer = await client.get("/v1/models", timeout_s=_TIMEOUT_S)
    try:
        model = next(model for model in answer["data"] if model["parent"] is None)
        return ServedModel(
            name=str(model["id"]),
            context_length=int(model["max_model_len"]),
            vocab_size=read_vocab_size(Path(model["root"])),
        )
    except (KeyError, TypeError, StopIteration):
        raise UnsupportedServer(f"{client.base_url} does not say which model it serves") from None


async def find_endpoint(client: TokenClient, model_name: str, *, timeout_s: float) -> Endpoint:
    """The token endpoint, if the server has it."""
    sampling = Sampling(temperature=0.0)
    body = generate_body("generate", model_name, _PROBE_IDS, sampling, max_tokens=1, stop_ids=())
    try:
        await client.post(PATHS["generate"], body, timeout_s=timeout_s)
    except RequestFailed as error:
        if error.status not in (403, 404, 405):
            raise
        return "completions"
    return "generate"


async def read_version(client: TokenClient) -> int:
    """The version of the weights as the server says it; 0 where it says none."""
    try:
        answer = await client.get("/weight_info", timeout_s=_TIMEOUT_S)
    except RequestFailed:
        return 0
    told = str(answer["weight_version"])
    return int(told) if told.isdecimal() else 0


async def require_processed_logprobs(
    client: TokenClient, endpoint: Endpoint, model_name: str, *, timeout_s: float
) -> None:
    """Probe what log-probabilities are of, at a temperature at which it makes a difference.

    Raises:
        RawLogprobs: not of what is sampled; names the flag that mends it.
        BadLogprobs: there are none, or they cannot be told apart.
    """
    tops = []
    for temperature in (1.0, PROBE_TEMPERATURE):
        body = generate_body(
            endpoint,
            model_name,
            _PROBE_IDS,
            Sampling(temperature=temperature),
            max_tokens=1,
            stop_ids=(),
            top_logprobs=5,
        )
        answer = await client.post(PATHS[endpoint], body, timeout_s=timeout_s)
        tops.append(read_top_logprobs(answer, endpoint))
    require_processed(
        *tops,
        temperature=PROBE_TEMPERATURE,
        remedy="start vLLM with --logprobs-mode processed_logprobs",
    )
