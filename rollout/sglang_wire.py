"""SGLang's requests and answers as data: ids, sampling, log-probabilities, weight versions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import (
    BadAnswer,
    BadLogprobs,
    RawLogprobs,
    RequestFailed,
    UnknownToken,
)
from palestra.rollout.structural_tag import structural_tag
from palestra.types import Completion, Sampling, Structure, VersionSpan

GENERATE = "/generate"

_STOP_REASONS = ("stop", "length", "abort")
# What regular expressions give a meaning to; Python's re.escape also escapes spaces, which grammar
# backends do not take.
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")


def generate_body(
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    request_id: str,
    max_support: int,
    vocab_size: int,
    top_logprobs: int = 0,
    stream: bool = False,
) -> dict[str, Any]:
    """The request for one completion. Nothing is left to the server's or the model's defaults.

    SGLang's plain log-probabilities are those after temperature but before top-k and top-p. Where
    these cut something off, it is asked for each token's log-probability among the tokens left,
    which it tells for at most `max_support` of them.

    Raises:
        RawLogprobs: top-p alone, with more tokens than that in the vocabulary.
    """
    top_k = sampling.top_k
    truncated = is_truncated(sampling)
    if truncated:
        top_k = top_k or vocab_size
        if top_k > max_support:
            raise RawLogprobs(
                f"SGLang tells log-probabilities after top_k {sampling.top_k} and top_p "
                f"{sampling.top_p:g} for at most {max_support} tokens, of {vocab_size} in the "
                f"vocabulary: set top_k to 1 to {max_support}, or top_p = 1 and top_k = 0, or "
                "start the server with a larger --sampling-mask-max-tokens"
            )
    fields: dict[str, Any] = {
        "n": 1,
        "max_new_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": top_k or -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": stop_ids,
        # With this on, SGLang heeds no stop token at all. With it off, the model's own end of text
        # also ends a reply.
        "ignore_eos": not stop_ids and sampling.structure is None,
        "skip_special_tokens": False,
        "no_stop_trim": True,
    }
    if sampling.seed is not None:
        fields["sampling_seed"] = sampling.seed % 2**63
    if sampling.structure is not None:
        fields |= _structure_fields(sampling.structure)
    body: dict[str, Any] = {
        "rid": request_id,
        "input_ids": prompt_ids,
        "sampling_params": fields,
        "return_logprob": True,
    }
    if truncated:
        body["return_sampling_mask"] = True
    if top_logprobs:
        body["top_logprobs_num"] = top_logprobs
    if stream:
        body["stream"] = True
    return body


def score_body(token_ids: Sequence[int], *, start: int = 0) -> dict[str, Any]:
    """The request for the log-probabilities of a text's tokens after `start`, at temperature 1.

    SGLang computes the text afresh from `start` on; what is before may come from its prefix cache.
    At -1 no log-probabilities are computed, only keys, which that cache then has.
    """
    return {
        "input_ids": token_ids,
        # A temperature of 0 keeps the sampler away from weights that are not numbers.
        "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
        "return_logprob": True,
        "logprob_start_len": start,
    }


def require_known(token_ids: Sequence[int], vocab_size: int) -> None:
    """Raise UnknownToken for an id outside the vocabulary.

    SGLang does not check: on a CPU such a token ends the server.
    """
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        unknown = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise UnknownToken(
            f"token {unknown} is not in the vocabulary of {vocab_size}: the prompt is of another "
            "model"
        )


def is_truncated(sampling: Sampling) -> bool:
    """Whether top-k or top-p cut anything off."""
    return sampling.temperature > 0 and (sampling.top_p < 1 or sampling.top_k > 0)


def read_completion(
    answer: Any, *, vocab_size: int, truncated: bool, version_of: Callable[[str], int]
) -> Completion:
    """The completion in an answer.

    Raises:
        BadAnswer: a field is missing or makes no sense.
        BadLogprobs: log-probabilities are missing, not finite, or not one for each token.
        UnknownToken: an id is not in the vocabulary.
    """
    try:
        ids = tuple(answer["output_ids"])
        told = answer["meta_info"]
        stop_reason = _read_stop_reason(told)
        spans = _read_spans(told, version_of)
    except (KeyError, TypeError) as error:
        raise BadAnswer(f"SGLang's answer lacks what it should have: {error!r}") from None
    _require_sampled_known(ids, vocab_size)
    logprobs = _read_pairs(told, "output_token_logprobs", ids)
    if truncated and ids:
        logprobs = told.get("output_token_sampling_logprobs")
    return Completion(
        ids=ids,
        logprobs=_checked(logprobs, len(ids)),
        stop_reason=stop_reason,
        version_spans=spans,
    )


class PieceReader:
    """Reads the events of one streamed completion, in which everything may come again and again.

    Without --incremental-streaming-output each event has the whole completion so far; with it, only
    what is new. How many tokens there are in all tells them apart.
    """

    def __init__(
        self,
        *,
        top_logprobs: int,
        vocab_size: int,
        truncated: bool,
        version_of: Callable[[str], int],
    ) -> None:
        self.count = 0  # tokens read so far
        self._top_logprobs = top_logprobs
        self._vocab_size = vocab_size
        self._truncated = truncated
        self._version_of = version_of

    def read(self, events: Sequence[Mapping[str, Any]]) -> Piece:
        """What these events add.

        Raises:
            RequestFailed: the server refuses what it had begun to answer.
            BadAnswer, BadLogprobs, UnknownToken: as `read_completion`.
        """
        ids: list[int] = []
        logprobs: list[Any] = []
        tops: list[tuple[tuple[int, float], ...]] = []
        stop_reason = None
        spans: tuple[VersionSpan, ...] = ()
        try:
            for event in events:
                told = event["meta_info"]
                total = told["completion_tokens"]
                new_ids = self._newest(event["output_ids"], total)
                pairs = self._newest(told["output_token_logprobs"], total)
                if [token for _, token, *_ in pairs] != new_ids:
                    raise BadLogprobs(
                        "SGLang's log-probabilities are those of other tokens than it answered"
                    )
                ids += new_ids
                plain = [logprob for logprob, *_ in pairs]
                new_logprobs = plain
                if self._truncated and new_ids:
                    new_logprobs = self._newest(told["output_token_sampling_logprobs"], total)
                logprobs += new_logprobs
                if self._top_logprobs:
                    rows = self._newest(told["output_top_logprobs"], total)
                    if self._truncated and new_ids:
                        masks = self._newest(told["output_token_sampling_mask"], total)
                        rows = _renormalize(rows, masks, plain, new_logprobs)
                    tops += [_likeliest(row, self._top_logprobs) for row in rows]
                self.count = max(self.count, total)
                if told["finish_reason"] is not None:
                    stop_reason = _read_stop_reason(told)
                    spans = _read_spans(told, self._version_of)
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"SGLang's answer lacks what it should have: {error!r}") from None
        _require_sampled_known(ids, self._vocab_size)
        return Piece(
            ids=tuple(ids),
            logprobs=_checked(logprobs, len(ids)),
            top_logprobs=tuple(tops),
            stop_reason=stop_reason,
            version_spans=spans,
        )

    def _newest(self, told: list[Any], total: int) -> list[Any]:
        """What was not read yet of a list with an entry per token, of which there are `total`."""
        start = self.count if len(told) >= total else 0
        return told[start : start + max(total - self.count, 0)]


def read_scores(answer: Any, token_ids: Sequence[int]) -> tuple[float, ...]:
    """The log-probability of each token that was scored but the first. Raises BadLogprobs."""
    told = answer.get("meta_info") if isinstance(answer, dict) else None
    logprobs = _read_pairs(told, "input_token_logprobs", token_ids, zero_is_any=True)
    return _checked(logprobs[1:], len(token_ids) - 1)


def read_top_logprobs(answer: Any) -> dict[int, float]:
    """The likeliest first tokens of a completion and their log-probabilities."""
    try:
        top = answer["meta_info"]["output_top_logprobs"][0]
        return {int(token): float(logprob) for logprob, token, _ in top}
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BadLogprobs(f"SGLang's answer has no log-probabilities: {error!r}") from None


def _read_stop_reason(told: Any) -> str:
    reason = told["finish_reason"]
    stop_reason: str = reason["type"]
    if stop_reason not in _STOP_REASONS:
        raise BadAnswer(f"SGLang ended a generation for an unknown reason: {stop_reason!r}")
    status = reason.get("status_code")
    if stop_reason == "abort" and isinstance(status, int) and status >= 400:
        raise RequestFailed(status, str(reason.get("message", "")), GENERATE)
    return stop_reason


def _read_spans(told: Any, version_of: Callable[[str], int]) -> tuple[VersionSpan, ...]:
    return tuple(
        VersionSpan(version=version_of(span["version"]), start=span["start"], end=span["end"])
        for span in told["weight_versions"]
        if span["end"] > span["start"]
    )


def _renormalize(
    rows: list[Any], masks: list[Any], plain: list[float], cut: list[float]
) -> list[list[tuple[float, int]]]:
    """The likeliest tokens before a cut as they are after it, by how the sampled one changed."""
    return [
        [(logprob - before + after, token) for logprob, token, *_ in row if token in mask]
        for row, mask, before, after in zip(rows, map(set, masks), plain, cut, strict=True)
    ]


def _likeliest(row: Any, n: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of one position, best first, of those that can be sampled."""
    tops = [(token, logprob) for logprob, token, *_ in row or () if logprob is not None]
    return tuple(sorted(tops, key=lambda top: -top[1])[:n])


def _require_sampled_known(ids: Sequence[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UnknownToken(
                f"SGLang sampled token {token}, but the vocabulary has {vocab_size}: it serves "
                "another model"
            )


def _read_pairs(
    told: Any, name: str, ids: Sequence[int], *, zero_is_any: bool = False
) -> list[Any]:
    """The log-probabilities in SGLang's list of (log-probability, token, text), of these tokens.

    In a prompt it names the vocabulary's last token 0, beside that token's own log-probability.
    """
    entries = told.get(name) if isinstance(told, Mapping) else None
    if entries is None:
        raise BadLogprobs(f"SGLang's answer has no {name}")
    try:
        found = [entry[1] for entry in entries]
        logprobs = [entry[0] for entry in entries]
    except (TypeError, IndexError) as error:
        raise BadLogprobs(f"SGLang's {name} are not what they should be: {error!r}") from None
    if len(found) != len(ids):
        raise BadLogprobs(f"SGLang answered {len(found)} log-probabilities for {len(ids)} tokens")
    if any(
        one != other and not (zero_is_any and one == 0)
        for one, other in zip(found, ids, strict=True)
    ):
        raise BadLogprobs("SGLang's log-probabilities are those of other tokens than it answered")
    return logprobs


def _checked(logprobs: Any, n_tokens: int) -> tuple[float, ...]:
    if not isinstance(logprobs, list) or len(logprobs) != n_tokens:
        count = len(logprobs) if isinstance(logprobs, list) else "no"
        raise BadLogprobs(f"SGLang answered {count} log-probabilities for {n_tokens} tokens")
    for position, logprob in enumerate(logprobs):
        # JSON has no NaN: what is none comes as null.
        if not isinstance(logprob, (int, float)) or not math.isfinite(logprob):
            raise BadLogprobs(
                f"the log-probability of token {position} is {logprob}: not a number to train on: "
                "are the weights broken?"
            )
    return tuple(map(float, logprobs))


def _structure_fields(structure: Structure) -> dict[str, Any]:
    if structure.call is not None:
        return {"structural_tag": structural_tag(structure)}
    if structure.json_schema is not None:
        return {"json_schema": json.dumps(structure.json_schema)}
    if structure.choice is not None:
        choices = (_SPECIAL.sub(r"\\\g<0>", choice) for choice in structure.choice)
        return {"regex": f"({'|'.join(choices)})"}
    return {"regex": structure.regex}
