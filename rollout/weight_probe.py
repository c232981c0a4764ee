"""A probe scored by a running vLLM server, with keys computed afresh or from its prefix cache."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from palestra.rollout.engine_errors import RequestFailed

if TYPE_CHECKING:
    from palestra.rollout.token_client import TokenClient

# By the token endpoint, by OpenAI's, or by the token endpoint without asking for log-probabilities
# of a prompt: on a server with LoRA, vLLM 0.32 dies of those in a batch.
Way = Literal["generate", "completions", "tail"]

_TOP = 20  # the server's own limit, unless it was raised
_TAIL = 4  # so many last tokens are scored by "tail"
# What vLLM answers where it computed NaN, which JSON cannot say.
_NO_NUMBERS = "Out of range float values are not JSON compliant"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What a server makes of a probe.

    `logprobs` are those of the probe's last tokens, as many as were asked for. `marks` are
    log-probabilities that depend on every key: two ways of scoring must agree in them. `version`
    is the server's own name of the weights, None where its answers do not tell.
    """

    logprobs: tuple[float, ...]
    marks: Mapping[int, float]
    version: str | None


async def score(
    client: TokenClient,
    model: str,
    token_ids: Sequence[int],
    *,
    way: Way,
    fresh: bool,
    timeout_s: float,
) -> Scored:
    """Score a probe: `fresh` bypasses the prefix cache; otherwise what is cached is used.

    Raises what the client raises.
    """
    if way == "tail":
        return await _score_tail(client, model, token_ids, fresh, timeout_s)
    sampling: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "logprobs": _TOP}
    if fresh:
        sampling["prompt_logprobs"] = 0  # vLLM does not read its cache then
    body: dict[str, Any] = {"model": model}
    if way == "generate":
        path = "/inference/v1/generate"
        body |= {"token_ids": token_ids, "sampling_params": {**sampling, "detokenize": False}}
    else:
        path = "/v1/completions"
        body |= {"prompt": token_ids, "return_tokens_as_token_ids": True, **sampling}
    try:
        answer = await client.post(path, body, timeout_s=timeout_s, idempotent=True)
    except RequestFailed as error:
        if _NO_NUMBERS not in error.message:
            raise
        return Scored(logprobs=(math.nan,) * (len(token_ids) - 1), marks={}, version=None)
    choice = answer["choices"][0]
    if way == "generate":
        content = choice["logprobs"]["content"][0]
        return Scored(
            logprobs=_prompt_logprobs(answer, token_ids) if fresh else (),
            marks={entry["token_id"]: entry["logprob"] for entry in content["top_logprobs"]},
            version=_version(choice),
        )
    named = choice["logprobs"]["top_logprobs"][0]
    return Scored(
        logprobs=_prompt_logprobs(choice, token_ids) if fresh else (),
        marks={int(name.removeprefix("token_id:")): value for name, value in named.items()},
        version=None,
    )


async def _score_tail(
    client: TokenClient, model: str, token_ids: Sequence[int], fresh: bool, timeout_s: float
) -> Scored:
    """Score the last tokens, each as what might be sampled after those before it."""
    # A salt makes other prompts' cached keys invisible, and these to them.
    salt = {"cache_salt": uuid.uuid4().hex} if fresh else {}
    ends = range(len(token_ids) - _TAIL, len(token_ids))
    answers = await asyncio.gather(
        *(
            client.post(
                "/inference/v1/generate",
                {
                    "model": model,
                    "token_ids": token_ids[:end],
                    "sampling_params": {
                        "max_tokens": 1,
                        "temperature": 1.0,
                        # As many are answered as asked for, the sampled one in front.
                        "logprobs": 2,
                        "logprob_token_ids": [token_ids[end], int(token_ids[end] == 0)],
                        "detokenize": False,
                    },
                    **salt,
                },
                timeout_s=timeout_s,
                idempotent=True,
            )
            for end in ends
        )
    )
    logprobs = []
    for end, answer in zip(ends, answers, strict=True):
        entry = answer["choices"][0]["logprobs"]["content"][0]
        found = {top["token_id"]: top["logprob"] for top in [entry, *entry["top_logprobs"]]}
        logprobs.append(found[token_ids[end]])
    return Scored(
        logprobs=tuple(logprobs),
        marks=dict(zip(ends, logprobs, strict=True)),
        version=_version(answers[-1]["choices"][0]),
    )


def _version(choice: Mapping[str, Any]) -> str | None:
    spans = choice.get("weight_versions")
    return str(spans[-1]["version"]) if spans else None


def _prompt_logprobs(answer: Mapping[str, Any], token_ids: Sequence[int]) -> tuple[float, ...]:
    """The log-probability of each token but the first, which has none."""
    rows = answer["prompt_logprobs"][1:]
    values = [row[str(token)]["logprob"] for row, token in zip(rows, token_ids[1:], strict=True)]
    # JSON has no NaN: what is none comes as null.
    return tuple(math.nan if value is None else value for value in values)
