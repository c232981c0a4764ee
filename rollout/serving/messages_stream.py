"""Replies as Anthropic's Messages API has them: content blocks, and the events that build them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.error_response import anthropic_error_body
from palestra.rollout.serving.event_stream import event
from palestra.rollout.serving.ready_together import ready_together
from palestra.rollout.serving.reply import CallDelta, ReplyDelta, ReplyEnd

# A JSON object of the API: an event, a content block, a message.
Json = dict[str, Any]

# Clients send a thinking block back only if it is signed; nothing is checked here.
_SIGNATURE = "unsigned"


class ContentBlocks:
    """The content blocks that a reply's deltas add up to, in the order they were sampled."""

    def __init__(self) -> None:
        self.blocks: list[Json] = []
        self._arguments = ""
        self._call: int | None = None
        self._is_open = False

    def add(self, delta: ReplyDelta) -> list[Json]:
        """One more delta, which may be the end. Returns the events for it."""
        return list(self._events(delta))

    def _events(self, delta: ReplyDelta) -> Iterator[Json]:
        if delta.reasoning:
            yield from self._begin("thinking")
            self.blocks[-1]["thinking"] += delta.reasoning
            yield self._delta(type="thinking_delta", thinking=delta.reasoning)
        if delta.content:
            yield from self._begin("text")
            self.blocks[-1]["text"] += delta.content
            yield self._delta(type="text_delta", text=delta.content)
        for call in delta.calls:
            yield from self._begin("tool_use", call)
            if call.arguments:
                self._arguments += call.arguments
                yield self._delta(type="input_json_delta", partial_json=call.arguments)
        if delta.end:
            yield from self._close()

    def _begin(self, kind: str, call: CallDelta | None = None) -> Iterator[Json]:
        """Opens a block, unless it is the one that is open already."""
        index = None if call is None else call.index
        if self._is_open and self.blocks[-1]["type"] == kind and self._call == index:
            return
        yield from self._close()
        self._call, self._arguments, self._is_open = index, "", True
        self.blocks.append(_new_block(kind, call))
        yield {
            "type": "content_block_start",
            "index": len(self.blocks) - 1,
            # The block itself grows: the event needs it as it is now.
            "content_block": dict(self.blocks[-1]),
        }

    def _close(self) -> Iterator[Json]:
        if not self._is_open:
            return
        self._is_open = False
        block = self.blocks[-1]
        if block["type"] == "thinking":
            block["signature"] = _SIGNATURE
            yield self._delta(type="signature_delta", signature=_SIGNATURE)
        elif block["type"] == "tool_use":
            block["input"] = _input(self._arguments)
        yield {"type": "content_block_stop", "index": len(self.blocks) - 1}

    def _delta(self, **delta: str) -> Json:
        return {"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}


async def message_events(
    message: Json, deltas: AsyncGenerator[ReplyDelta, None]
) -> AsyncGenerator[bytes, None]:
    """The events of a streamed message, which begins as `message`.

    Those that are ready together go out together.
    """
    content = ContentBlocks()
    begin: list[Json] = [{"type": "message_start", "message": message}]
    async with aclosing(ready_together(deltas)) as batches:
        async for batch in batches:
            events, begin = begin, []
            for delta in batch:
                events += content.add(delta)
                if delta.end:
                    stop, usage = stop_fields(delta.end), usage_of(delta.end)
                    events.append({"type": "message_delta", "delta": stop, "usage": usage})
                    events.append({"type": "message_stop"})
            yield b"".join(event(data, name=data["type"]) for data in events)


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream which broke off."""
    return event(anthropic_error_body(error), name="error")


def stop_fields(end: ReplyEnd) -> Json:
    """Why a message ended."""
    if end.finish_reason == "length":
        reason = "max_tokens"
    elif end.finish_reason == "tool_calls":
        reason = "tool_use"
    else:
        reason = "end_turn" if end.stop_string is None else "stop_sequence"
    stopped_by = end.stop_string if reason == "stop_sequence" else None
    return {"stop_reason": reason, "stop_sequence": stopped_by}


def usage_of(end: ReplyEnd) -> Json:
    """How many tokens a message took."""
    return {"input_tokens": end.prompt_tokens, "output_tokens": end.completion_tokens}


def _new_block(kind: str, call: CallDelta | None) -> Json:
    if call is not None:
        return {"type": kind, "id": call.id, "name": call.name, "input": {}}
    if kind == "thinking":
        return {"type": kind, "thinking": "", "signature": ""}
    return {"type": kind, "text": ""}


def _input(arguments: str) -> Json:
    """The arguments as an object: what there is of them where the token limit cut them."""
    try:
        value = from_json(arguments or "{}", allow_partial=True)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"malformed": arguments}
