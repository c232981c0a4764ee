"""`TextCompleter`: continues plain text, without a chat format's turns, for /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from palestra.rollout.engine import Engine, Piece
from palestra.rollout.engine_errors import ContextOverflow, UnknownToken
from palestra.rollout.serving.api_error import ApiError, of_engine
from palestra.rollout.serving.merged import merged
from palestra.rollout.serving.reply import ReplyDelta, ReplyEnd
from palestra.rollout.serving.token_text import TokenText
from palestra.rollout.token_bytes import TokenBytes
from palestra.types import Sampling, Turn


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
        text = TokenText(
            self._token_bytes,
            stop=request.stop,
            wants_logprobs=request.top_logprobs is not None,
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
                    content, tokens = text.push(_without_end(piece)), text.take_tokens()
                    if content or tokens:
                        yield ReplyDelta(choice=choice, content=content, tokens=tokens)
                    if text.stop_string is not None or piece.stop_reason is not None:
                        break
        except Exception as error:
            raise error if isinstance(error, ApiError) else _of_engine(error) from error
        turn = Turn(
            message={},
            prompt_ids=prompt_ids,
            completion_ids=tuple(ids),
            logprobs=tuple(logprobs),
            sampling=sampling,
        )
        has_stopped = text.stop_string is not None or stop_reason == "stop"
        yield ReplyDelta(
            choice=choice,
            content=text.finish(),
            tokens=text.take_tokens(),
            end=ReplyEnd(
                finish_reason="stop" if has_stopped else "length",
                message={},
                turn=turn,
            ),
        )


def _without_end(piece: Piece) -> Piece:
    """The piece without the token that ends the text, which is its last where it was sampled."""
    if piece.stop_reason != "stop":
        return piece
    return replace(
        piece,
        ids=piece.ids[:-1],
        logprobs=piece.logprobs[:-1],
        top_logprobs=piece.top_logprobs[:-1],
    )


def _of_engine(error: Exception) -> ApiError:
    """As `of_engine`, with the parameter that completions have."""
    if isinstance(error, UnknownToken):
        return ApiError(400, str(error), code="invalid_value", param="prompt")
    told = of_engine(error)
    if told.param == "messages":
        told.param = "prompt"
    return told
