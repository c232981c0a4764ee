"""`TextCompleter`: continues plain text, without a chat format's turns, for /v1/completions."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from palestra.rollout.engine import Engine
from palestra.rollout.engine_errors import ContextOverflow, UnknownToken
from palestra.rollout.serving.api_error import ApiError, of_engine
from palestra.rollout.serving.merged import merged
from palestra.rollout.serving.reply import ReplyDelta, ReplyEnd, TokenLogprob
from palestra.rollout.serving.text_scan import StopSearch
from palestra.rollout.token_bytes import TokenBytes
from palestra.types import Sampling, Turn

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRequest:
    """`n` continuations of each prompt, text or token ids; see `ReplyRequest`."""

    prompts: tuple[str | tuple[int, ...], ...]
    sampling: Sampling
    n: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


class TextCompleter:
    """Continues texts with an engine.

    `encode` makes tokens of a text as the model's tokenizer does, with what it puts in front.
    """

    def __init__(
        self, engine: Engine, *, encode: Callable[[str], list[int]], token_bytes: TokenBytes
    ) -> None:
        self._engine = engine
        self._encode = encode
        self._token_bytes = token_bytes

    def complete(self, request: TextRequest) -> AsyncGenerator[ReplyDelta, None]:
        """The continuations as they are sampled: number i * n + j is the j-th of prompt i.

        A continuation ends at the model's end of turn or text, which is no part of it.

        Raises:
            ApiError: the request is at fault, or the engine is not available.
        """
        sources: list[AsyncGenerator[ReplyDelta, None]] = []
        for prompt in request.prompts:
            ids = tuple(self._encode(prompt)) if isinstance(prompt, str) else prompt
            for sample in range(request.n):
                seed = request.sampling.seed
                sampling = replace(request.sampling, seed=None if seed is None else seed + sample)
                sources.append(self._continue(len(sources), ids, sampling, request))
        return merged(sources)

    async def _continue(
        self, choice: int, prompt_ids: tuple[int, ...], sampling: Sampling, request: TextRequest
    ) -> AsyncGenerator[ReplyDelta, None]:
        room = self._engine.context_length - len(prompt_ids)
        if not prompt_ids or room < 1:
            overflow = ContextOverflow(
                f"a prompt of {len(prompt_ids)} tokens does not fit: it needs 1 to "
                f"{self._engine.context_length - 1} (the context length is "
                f"{self._engine.context_length})"
            )
            raise _of_engine(overflow)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        text = _Text(
            self._token_bytes, request.stop, wants_logprobs=request.top_logprobs is not None
        )
        ids: list[int] = []
        logprobs: list[float] = []
        stop_reason = "length"
        pieces = self._engine.stream(prompt_ids, sampling, top_logprobs=request.top_logprobs or 0)
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    ids += piece.ids
                    logprobs += piece.logprobs
                    stop_reason = piece.stop_reason or stop_reason
                    told = piece.ids[:-1] if piece.stop_reason == "stop" else piece.ids
                    for place, token_id in enumerate(told):
                        top = piece.top_logprobs[place] if piece.top_logprobs else ()
                        text.push(token_id, piece.logprobs[place], top)
                        if text.has_ended:
                            break
                    if text.has_ended or piece.stop_reason is not None:
                        break
                    content, tokens = text.take()
                    if content or tokens:
                        yield ReplyDelta(choice=choice, content=content, tokens=tokens)
        except Exception as error:
            raise error if isinstance(error, ApiError) else _of_engine(error) from error
        turn = Turn(
            message={},
            prompt_ids=prompt_ids,
            completion_ids=tuple(ids),
            logprobs=tuple(logprobs),
            sampling=sampling,
        )
        content, tokens = text.finish()
        yield ReplyDelta(
            choice=choice,
            content=content,
            tokens=tokens,
            end=ReplyEnd(
                finish_reason="stop" if text.has_ended or stop_reason == "stop" else "length",
                message={},
                turn=turn,
            ),
        )


class _Text:
    """Tokens as text: whole characters, none that a stop string may yet claim."""

    def __init__(
        self, token_bytes: TokenBytes, stop: Sequence[str], *, wants_logprobs: bool
    ) -> None:
        self._token_bytes = token_bytes
        self._utf8 = _Utf8Decoder("replace")
        self._stop = StopSearch(stop)
        self._wants_logprobs = wants_logprobs
        self._tokens: deque[tuple[int, TokenLogprob]] = deque()  # untold, with where each begins
        self._decoded = self._told = 0  # characters
        self._free: list[str] = []

    @property
    def has_ended(self) -> bool:
        return self._stop.found is not None

    def push(self, token_id: int, logprob: float, top: Sequence[tuple[int, float]]) -> None:
        if self._wants_logprobs:
            token = replace(
                self._token(token_id, logprob), top=tuple(self._token(*other) for other in top)
            )
            self._tokens.append((self._decoded, token))
        self._add(self._utf8.decode(self._token_bytes[token_id]))

    def take(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """The text that is certain, and the tokens that begin in it."""
        text = "".join(self._free)
        self._free.clear()
        self._told += len(text)
        tokens = []
        while self._tokens and self._tokens[0][0] < self._told:
            tokens.append(self._tokens.popleft()[1])
        return text, tuple(tokens)

    def finish(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What was held back."""
        if not self.has_ended:
            self._add(self._utf8.decode(b"", final=True))
            self._free.append(self._stop.flush())
        text, tokens = self.take()
        if not self.has_ended:  # and those that have no text
            tokens += tuple(token for _, token in self._tokens)
        return text, tokens

    def _add(self, text: str) -> None:
        self._decoded += len(text)
        self._free.append(self._stop.push(text))

    def _token(self, token_id: int, logprob: float) -> TokenLogprob:
        data = self._token_bytes[token_id]
        return TokenLogprob(text=data.decode(errors="replace"), bytes=data, logprob=logprob)


def _of_engine(error: Exception) -> ApiError:
    """As `of_engine`, with the parameter that completions have."""
    if isinstance(error, UnknownToken):
        return ApiError(400, str(error), code="invalid_value", param="prompt")
    told = of_engine(error)
    if told.param == "messages":
        told.param = "prompt"
    return told
