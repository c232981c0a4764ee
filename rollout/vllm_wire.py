"""vLLM's requests and answers as data: token ids, sampling, log-probabilities, weight versions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import BadAnswer, BadLogprobs, UnknownToken
from palestra.rollout.structural_tag import structural_tag
from palestra.types import Completion, Sampling, Structure, VersionSpan

# The token endpoint (`--enable-scale-out`) answers with ids alone and says which weights sampled
# each token; the completions endpoint serves where there is no other.
Endpoint = Literal["generate", "completions"]
PATHS: Mapping[Endpoint, str] = {
    "generate": "/inference/v1/generate",
    "completions": "/v1/completions",
}

_STOP_REASONS = ("stop", "length", "abort")
# vLLM answers this where it computed NaN or minus infinity.
_CLAMPED_LOGPROB = -9999.0
# OpenAI's endpoint marks a token's id like this where it would print the token.
_ID_MARK = "token_id:"


def generate_body(
    endpoint: Endpoint,
    model: str,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    n: int = 1,
    top_logprobs: int = 0,
    stream: bool = False,
) -> dict[str, Any]:
    """The request for `n` completions. Nothing is left to the server's or the model's defaults."""
    if top_logprobs and endpoint == "generate":
        top_logprobs += 1  # it counts the sampled token, however likely, as the first of them
    fields: dict[str, Any] = {
        "n": n,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": stop_ids,
        # The model's own end of text is no end of turn; a grammar, however, ends with it.
        "ignore_eos": sampling.structure is None,
        "logprobs": top_logprobs,
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed % 2**63
    if sampling.structure is not None:
        fields["structured_outputs"] = _structure_fields(sampling.structure)
    if endpoint == "generate":
        params = {**fields, "detokenize": False}
        body = {"model": model, "token_ids": prompt_ids, "sampling_params": params}
        return {**body, "stream": True} if stream else body
    return {
        **fields,
        "model": model,
        "prompt": prompt_ids,
        "stream": stream,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def score_body(model: str, token_ids: Sequence[int]) -> dict[str, Any]:
    """The request, to the completions endpoint, for the log-probabilities of a text."""
    return {
        "model": model,
        "prompt": token_ids,
        "max_tokens": 0,
        "echo": True,
        "logprobs": 0,
        "temperature": 1.0,
    }


def read_completions(
    answer: Any,
    endpoint: Endpoint,
    *,
    n: int,
    vocab_size: int | None,
    version_of: Callable[[str], int],
) -> list[Completion]:
    """The completions in an answer, by index. Without version spans where the server has none.

    Raises:
        BadAnswer: a field is missing or makes no sense.
        BadLogprobs: log-probabilities are missing, not finite, or not one for each token.
        UnknownToken: an id is not in the vocabulary.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        completions = [_read_choice(choice, endpoint, version_of) for choice in choices]
    except (KeyError, TypeError, IndexError) as error:
        raise BadAnswer(f"vLLM's answer lacks what it should have: {error!r}") from None
    if len(completions) != n:
        raise BadAnswer(f"vLLM answered {len(completions)} completions, {n} were asked for")
    for completion in completions:
        _require_known(completion.ids, vocab_size)
    return completions


def read_piece(
    events: Sequence[Mapping[str, Any]],
    endpoint: Endpoint,
    *,
    top_logprobs: int,
    vocab_size: int | None,
    version_of: Callable[[str], int],
) -> Piece:
    """The tokens in a streamed answer's events, which are of one completion.

    Raises as `read_completions`.
    """
    ids: list[int] = []
    logprobs: list[Any] = []
    tops: list[tuple[tuple[int, float], ...]] = []
    stop_reason = None
    spans: tuple[VersionSpan, ...] = ()
    try:
        for event in events:
            for choice in event["choices"]:
                new_ids, new_logprobs = _read_tokens(choice, endpoint)
                ids += new_ids
                logprobs += new_logprobs
                if top_logprobs and new_ids:
                    tops += _read_tops(choice["logprobs"], endpoint, top_logprobs)
                if choice["finish_reason"] is not None:
                    stop_reason = _read_stop_reason(choice)
                    spans = _read_spans(choice, version_of)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BadAnswer(f"vLLM's answer lacks what it should have: {error!r}") from None
    _require_known(ids, vocab_size)
    return Piece(
        ids=tuple(ids),
        logprobs=_checked(logprobs, len(ids)),
        top_logprobs=tuple(tops),
        stop_reason=stop_reason,
        version_spans=spans,
    )


def read_scores(answer: Any, n_tokens: int) -> tuple[float, ...]:
    """The log-probability of each token of a text but the first. Raises as `read_completions`."""
    try:
        logprobs = answer["choices"][0]["logprobs"]["token_logprobs"][1:n_tokens]
    except (KeyError, TypeError, IndexError) as error:
        raise BadLogprobs(f"vLLM's answer has no log-probabilities of the prompt: {error!r}") from (
            None
        )
    return _checked(logprobs, n_tokens - 1)


def read_top_logprobs(answer: Any, endpoint: Endpoint) -> dict[int, float]:
    """The likeliest first tokens of a completion and their log-probabilities."""
    try:
        logprobs = answer["choices"][0]["logprobs"]
        if endpoint == "generate":
            return {
                top["token_id"]: top["logprob"] for top in logprobs["content"][0]["top_logprobs"]
            }
        top = logprobs["top_logprobs"][0]
        return {int(token.removeprefix(_ID_MARK)): logprob for token, logprob in top.items()}
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BadLogprobs(f"vLLM's answer has no log-probabilities: {error!r}") from None


def _read_choice(choice: Any, endpoint: Endpoint, version_of: Callable[[str], int]) -> Completion:
    ids, logprobs = _read_tokens(choice, endpoint)
    return Completion(
        ids=tuple(ids),
        logprobs=_checked(logprobs, len(ids)),
        stop_reason=_read_stop_reason(choice),
        version_spans=_read_spans(choice, version_of),
    )


def _read_tokens(choice: Any, endpoint: Endpoint) -> tuple[list[int], list[Any]]:
    """Ids and what is said to be their log-probabilities."""
    ids = choice["token_ids"]
    if not ids:
        return [], []
    told = choice["logprobs"]
    if told is None:
        raise BadLogprobs(f"vLLM answered {len(ids)} tokens without log-probabilities")
    if endpoint == "completions":
        return ids, told["token_logprobs"]
    if [entry["token_id"] for entry in told["content"]] != ids:
        raise BadLogprobs("vLLM's log-probabilities are those of other tokens than it answered")
    return ids, [entry["logprob"] for entry in told["content"]]


def _read_tops(told: Any, endpoint: Endpoint, n: int) -> list[tuple[tuple[int, float], ...]]:
    """The `n` likeliest tokens at each position, best first, of those that can be sampled."""
    if endpoint == "generate":
        rows = [
            [(top["token_id"], top["logprob"]) for top in entry["top_logprobs"]]
            for entry in told["content"]
        ]
    else:
        rows = [
            [(int(token.removeprefix(_ID_MARK)), logprob) for token, logprob in row.items()]
            for row in told["top_logprobs"]
        ]
    return [
        tuple(sorted((top for top in row if top[1] > _CLAMPED_LOGPROB), key=_negative_logprob)[:n])
        for row in rows
    ]


def _negative_logprob(top: tuple[int, float]) -> float:
    return -top[1]


def _read_stop_reason(choice: Any) -> str:
    stop_reason: str = choice["finish_reason"]
    if stop_reason not in _STOP_REASONS:
        raise BadAnswer(f"vLLM ended a generation for an unknown reason: {stop_reason!r}")
    return stop_reason


def _read_spans(choice: Any, version_of: Callable[[str], int]) -> tuple[VersionSpan, ...]:
    return tuple(
        VersionSpan(version=version_of(span["version"]), start=span["start"], end=span["end"])
        for span in choice.get("weight_versions") or ()
    )


def _require_known(ids: Sequence[int], vocab_size: int | None) -> None:
    if vocab_size is not None:
        for token in ids:
            if not 0 <= token < vocab_size:
                raise UnknownToken(
                    f"vLLM sampled token {token}, but the vocabulary has {vocab_size}: it "
                    "serves another model"
                )


def _checked(logprobs: Sequence[Any], n_tokens: int) -> tuple[float, ...]:
    if len(logprobs) != n_tokens:
        raise BadLogprobs(f"vLLM answered {len(logprobs)} log-probabilities for {n_tokens} tokens")
    for position, logprob in enumerate(logprobs):
        if logprob is None or not math.isfinite(logprob) or logprob <= _CLAMPED_LOGPROB:
            raise BadLogprobs(
                f"the log-probability of token {position} is {logprob}: not a number to train on "
                "(vLLM answers -9999 for NaN): are the weights broken?"
            )
    return tuple(logprobs)


def _structure_fields(structure: Structure) -> dict[str, Any]:
    if structure.call is not None:
        return {"structural_tag": structural_tag(structure)}
    if structure.json_schema is not None:
        return {"json": structure.json_schema}
    if structure.choice is not None:
        return {"choice": list(structure.choice)}
    return {"regex": structure.regex}
