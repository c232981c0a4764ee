"""POST /completions: OpenAI's older API, which continues texts as they are."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter
from pydantic import AfterValidator, Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import Response

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.event_stream import EventStream, while_connected
from palestra.rollout.serving.json_route import JsonRoute
from palestra.rollout.serving.openai_answers import (
    DONE,
    IMPOSSIBLE,
    RESPONSES,
    UsageCount,
    chunk,
    error_event,
    json_answer,
)
from palestra.rollout.serving.ready_together import ready_together
from palestra.rollout.serving.reply import ReplyDelta, TokenLogprob
from palestra.rollout.serving.request_fields import NO_TOKEN_LIMIT, Unsupported
from palestra.rollout.serving.sampling_fields import MAX_REPLIES, SamplingFields, refuse_all_but
from palestra.rollout.serving.text_completer import TextCompleter, TextRequest

_DEFAULT_MAX_TOKENS = 16

# Finds what completes texts for a model, or raises ApiError.
FindCompleter = Callable[[str], TextCompleter]

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _kind(prompt: Any) -> str:
    if isinstance(prompt, str):
        return "<text>"
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    return "<lists>" if isinstance(first, list) else "<ids>" if type(first) is int else "<texts>"


Ids = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_REPLIES), Tag("<texts>")]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_REPLIES), Tag("<lists>")],
    Discriminator(_kind),
]


class CompletionRequest(SamplingFields):
    """A request for completions. Unknown fields are refused."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, AfterValidator(refuse_all_but(1))] | None = None
    echo: Annotated[bool, AfterValidator(refuse_all_but(False))] | None = None
    suffix: Unsupported = None

    def text_request(self) -> TextRequest:
        """What is to be completed. Raises ApiError (400) for too many completions at once."""
        prompts = _prompts(self.prompt)
        n = self.n or 1
        if len(prompts) * n > MAX_REPLIES:
            raise ApiError(
                400,
                f"n: {len(prompts)} prompts times {n} are more than {MAX_REPLIES} completions",
                code="invalid_value",
                param="n",
            )
        return TextRequest(
            prompts=prompts,
            sampling=self.sampling(
                max_tokens=min(NO_TOKEN_LIMIT, self.max_tokens or _DEFAULT_MAX_TOKENS)
            ),
            n=n,
            stop=self.stops,
            top_logprobs=self.logprobs,
        )


def routes(find_completer: FindCompleter) -> APIRouter:
    """The route, to be included under /v1."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/completions", responses=RESPONSES, response_class=Response)
    async def create_completion(request: Request, body: CompletionRequest) -> Any:
        """OpenAI's completions."""
        completer = find_completer(body.model)
        wants_usage = body.wants_usage
        deltas = completer.complete(body.text_request())
        common = {
            "id": f"cmpl-{uuid.uuid4().hex[:24]}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }
        if body.stream:
            events = _events(deltas, common, wants_usage=wants_usage)
            return EventStream(events, error_event=error_event)
        choices, usage = await while_connected(request.receive, _collect(deltas))
        return json_answer({**common, "choices": choices, "usage": usage.answer()})

    return router


async def _collect(
    deltas: AsyncGenerator[ReplyDelta, None],
) -> tuple[list[dict[str, Any]], UsageCount]:
    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[TokenLogprob]] = {}
    reasons: dict[int, str] = {}
    usage = UsageCount()
    async with aclosing(deltas):
        async for delta in deltas:
            texts.setdefault(delta.choice, []).append(delta.content)
            tokens.setdefault(delta.choice, []).extend(delta.tokens)
            usage.add(delta)
            if delta.end is not None:
                reasons[delta.choice] = delta.end.finish_reason
    choices = [
        {
            "index": index,
            "text": "".join(texts[index]),
            "logprobs": _logprobs(tokens[index], 0),
            "finish_reason": reasons.get(index),
        }
        for index in sorted(texts)
    ]
    return choices, usage


async def _events(
    deltas: AsyncGenerator[ReplyDelta, None], common: dict[str, Any], *, wants_usage: bool
) -> AsyncGenerator[bytes, None]:
    head, tail = chunk(common, wants_usage=wants_usage)
    usage = UsageCount()
    offsets: dict[int, int] = {}

    def event(delta: ReplyDelta) -> bytes:
        usage.add(delta)
        offset = offsets.get(delta.choice, 0)
        offsets[delta.choice] = offset + sum(len(token.text) for token in delta.tokens)
        choice = {
            "index": delta.choice,
            "text": delta.content,
            "logprobs": _logprobs(delta.tokens, offset),
            "finish_reason": delta.end and delta.end.finish_reason,
        }
        return head + orjson.dumps(choice) + tail

    async with aclosing(ready_together(deltas)) as batches:
        async for batch in batches:
            yield b"".join(map(event, batch))
    end = head + b'],"usage":' + orjson.dumps(usage.answer()) + b"}\n\n"
    yield end + DONE if wants_usage else DONE


def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    if not tokens:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [max(IMPOSSIBLE, token.logprob) for token in tokens],
        "top_logprobs": [
            {other.text: max(IMPOSSIBLE, other.logprob) for other in token.top} for token in tokens
        ],
        "text_offset": offsets,
    }


def _prompts(prompt: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (tuple(prompt),)
    return tuple(one if isinstance(one, str) else tuple(one) for one in prompt)
