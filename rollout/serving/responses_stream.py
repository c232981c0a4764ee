"""Replies as OpenAI's Responses API has them: output items, and the events that build them up."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.event_stream import event
from palestra.rollout.serving.ready_together import ready_together
from palestra.rollout.serving.reply import CallDelta, ReplyDelta, ReplyEnd, TokenLogprob

# A JSON object of the API: an event, an output item, a response.
Json = dict[str, Any]

# JSON has no infinities: what was impossible has the log-probability that vLLM writes for it.
_IMPOSSIBLE = -9999.0


class OutputItems:
    """The output items that a reply's deltas add up to.

    Items follow one another as they were sampled: reasoning, a message, calls. Where the model
    wrote text behind a call, it is another message.
    """

    def __init__(self, *, with_logprobs: bool) -> None:
        self.items: list[Json] = []
        self._with_logprobs = with_logprobs
        self._call: int | None = None
        self._is_open = False
        # Tokens whose text is held back until it is known not to begin something else.
        self._held: list[TokenLogprob] = []

    def add(self, delta: ReplyDelta) -> list[Json]:
        """One more delta, which may be the end. Returns the events for it."""
        return list(self._events(delta))

    def _events(self, delta: ReplyDelta) -> Iterator[Json]:
        self._held += delta.tokens
        if delta.reasoning:
            yield from self._begin("reasoning")
            yield from self._say("reasoning_text", delta.reasoning)
        if delta.content:
            yield from self._begin("message")
            yield from self._say("output_text", delta.content)
        for call in delta.calls:
            yield from self._add_call(call)
        if delta.reasoning or delta.content or delta.calls:
            self._held.clear()
        if delta.end:
            if not self.items:
                yield from self._begin("message")
                yield from self._say("output_text", "")
            is_cut = delta.end.finish_reason == "length"
            yield from self._close("incomplete" if is_cut else "completed")

    def _begin(self, kind: str, call: CallDelta | None = None) -> Iterator[Json]:
        """Opens an item, unless it is the one that is open already."""
        index = None if call is None else call.index
        if self._is_open and self.items[-1]["type"] == kind and self._call == index:
            return
        yield from self._close("completed")
        self._call = index
        self._is_open = True
        self.items.append(_new_item(kind, call))
        place = {"output_index": len(self.items) - 1}
        # The item itself grows: the event needs it as it is now.
        yield {"type": "response.output_item.added", **place, "item": _copy(self.items[-1])}

    def _say(self, kind: str, text: str) -> Iterator[Json]:
        """More text of the open item's only part."""
        item = self.items[-1]
        place = self._place()
        if not item["content"]:
            item["content"].append(_new_part(kind))
            yield {"type": "response.content_part.added", **place, "part": _new_part(kind)}
        part = item["content"][0]
        part["text"] += text
        extra = {}
        if kind == "output_text":
            logprobs = [_logprob(token) for token in self._held] if self._with_logprobs else []
            part["logprobs"] += logprobs
            extra["logprobs"] = logprobs
        yield {"type": f"response.{kind}.delta", **place, "delta": text, **extra}

    def _add_call(self, call: CallDelta) -> Iterator[Json]:
        yield from self._begin("function_call", call)
        if call.arguments:
            self.items[-1]["arguments"] += call.arguments
            yield {
                "type": "response.function_call_arguments.delta",
                "item_id": self.items[-1]["id"],
                "output_index": len(self.items) - 1,
                "delta": call.arguments,
            }

    def _close(self, status: str) -> Iterator[Json]:
        if not self._is_open:
            return
        self._is_open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            yield {
                "type": "response.function_call_arguments.done",
                "item_id": item["id"],
                "output_index": len(self.items) - 1,
                "name": item["name"],
                "arguments": item["arguments"],
            }
        else:
            place, part = self._place(), item["content"][0]
            done = {key: part[key] for key in ("text", "logprobs") if key in part}
            yield {"type": f"response.{part['type']}.done", **place, **done}
            yield {"type": "response.content_part.done", **place, "part": part}
        place = {"output_index": len(self.items) - 1}
        yield {"type": "response.output_item.done", **place, "item": item}

    def _place(self) -> Json:
        index = len(self.items) - 1
        return {"item_id": self.items[-1]["id"], "output_index": index, "content_index": 0}


class ResponseEvents:
    """The events of one streamed response. `response` is what it begins with."""

    def __init__(self, response: Json, *, with_logprobs: bool) -> None:
        self._response = response
        self._output = OutputItems(with_logprobs=with_logprobs)
        self._sent = 0

    async def stream(self, deltas: AsyncGenerator[ReplyDelta, None]) -> AsyncGenerator[bytes, None]:
        """The events; those that are ready together go out together."""
        async with aclosing(ready_together(deltas)) as batches:
            async for batch in batches:
                events: list[Json] = []
                if not self._sent:
                    begun = {"response": self._response}
                    events.append({"type": "response.created", **begun})
                    events.append({"type": "response.in_progress", **begun})
                for delta in batch:
                    events += self._output.add(delta)
                    if delta.end:
                        whole = ended(self._response, self._output.items, delta.end)
                        events.append({"type": f"response.{whole['status']}", "response": whole})
                yield self._written(events)

    def failed(self, error: ApiError) -> bytes:
        """The events that end a stream which broke off."""
        return self._written(
            [
                {
                    "type": "error",
                    "code": error.code,
                    "message": error.message,
                    "param": error.param,
                },
                {
                    "type": "response.failed",
                    "response": {
                        **self._response,
                        "status": "failed",
                        "output": self._output.items,
                        "error": {"code": "server_error", "message": error.message},
                    },
                },
            ]
        )

    def _written(self, events: Sequence[Mapping[str, Any]]) -> bytes:
        written = []
        for data in events:
            numbered = {**data, "sequence_number": self._sent}
            written.append(event(numbered, name=data["type"]))
            self._sent += 1
        return b"".join(written)


def ended(response: Json, items: Sequence[Json], end: ReplyEnd) -> Json:
    """The response with its output and usage."""
    is_cut = end.finish_reason == "length"
    return {
        **response,
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": items,
        "usage": {
            "input_tokens": end.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": end.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": end.prompt_tokens + end.completion_tokens,
        },
    }


def _new_item(kind: str, call: CallDelta | None) -> Json:
    if call is not None:
        return {
            "type": kind,
            "id": f"fc_{secrets.token_hex(12)}",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
    item: Json = {
        "type": kind,
        "id": f"{'rs' if kind == 'reasoning' else 'msg'}_{secrets.token_hex(12)}",
        "content": [],
        "status": "in_progress",
    }
    return {**item, "summary": []} if kind == "reasoning" else {**item, "role": "assistant"}


def _new_part(kind: str) -> Json:
    if kind == "reasoning_text":
        return {"type": kind, "text": ""}
    return {"type": kind, "text": "", "annotations": [], "logprobs": []}


def _copy(item: Json) -> Json:
    return {key: list(value) if isinstance(value, list) else value for key, value in item.items()}


def _logprob(token: TokenLogprob) -> Json:
    top = [_logprob(likely) for likely in token.top]
    for likely in top:
        del likely["top_logprobs"]
    return {
        "token": token.text,
        "bytes": list(token.bytes),
        "logprob": max(_IMPOSSIBLE, token.logprob),
        "top_logprobs": top,
    }
