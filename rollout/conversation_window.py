"""Long conversations made short, so that turn 50 costs what turn 5 does.

What a template prints behind a reply depends on how the conversation began, on what kinds of
messages there are and on the last ones; rendering all of it, twice a turn, is what makes a turn
dearer than the one before. `shorten` leaves out of the middle what was of the same kind as
something later. That a template sees no difference is not believed but tried (see
`ChatFormat.extend`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from palestra.types import Message, ToolSchema

# Below so many replies the whole conversation costs no more.
_MIN_REPLIES = 8
# Replies beyond a multiple of this stay: what was rendered for one turn then begins the next one's.
_STRIDE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The part of a conversation that stands for all of it; `replies` counts the whole."""

    messages: list[Message]
    replies: int

    @property
    def is_due_for_check(self) -> bool:
        """At 8, 16, 32, … replies: over a conversation these checks cost a constant per turn."""
        return self.replies >= 8 and self.replies & (self.replies - 1) == 0


def shorten(messages: Sequence[Message]) -> Window | None:
    """The beginning, the first reply, the last reply of each kind and the last; None if short.

    Each reply is kept with what answered it, and its kind includes theirs.
    """
    starts = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    settled = len(starts) - len(starts) % _STRIDE
    if settled < _MIN_REPLIES:
        return None
    ends = [*starts[1:], len(messages)]
    latest: dict[Hashable, int] = {}
    for block in range(settled):
        latest[tuple(map(_kind, messages[starts[block] : ends[block]]))] = block
    kept = sorted({0, settled - 1, *latest.values()})
    if len(kept) > settled // 2:
        return None
    short = list(messages[: starts[0]])
    for block in (*kept, *range(settled, len(starts))):
        short += messages[starts[block] : ends[block]]
    return Window(messages=short, replies=len(starts))


def probe_conversation() -> tuple[list[Message], list[ToolSchema]]:
    """A conversation with twelve replies of several kinds, by which to try a template."""
    conversation: list[Message] = [{"role": "user", "content": "question 0"}]
    for n in range(1, 13):
        reply: Message = {"role": "assistant", "content": f"said {n}"}
        if n % 3 == 0:
            reply["reasoning_content"] = f"thought {n}"
        if n % 4 == 0:
            conversation += (reply, {"role": "user", "content": f"question {n}"})
            continue
        call_id = f"call{n:05d}"  # nine letters and digits: Mistral's templates insist on that
        function = {"name": "probe", "arguments": f'{{"n": {n}}}'}
        reply["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
        answer = {"tool_call_id": call_id, "name": "probe", "content": f"found {n}"}
        conversation += (reply, {"role": "tool", **answer})
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}}
    schema = {"name": "probe", "description": "Probes.", "parameters": parameters}
    return conversation, [{"type": "function", "function": schema}]


def _kind(message: Message) -> Hashable:
    """What a template might tell messages apart by, besides what they say."""
    get = message.get  # this runs for every message in every turn
    role, content = get("role"), get("content")
    if role != "assistant":
        return role, not content
    thinks = get("reasoning_content") or (isinstance(content, str) and "<think" in content)
    calls = get("tool_calls")
    if not calls:
        return not content, not thinks
    several = len(calls) > 1
    errs = any(call.get("error") for call in calls) if several else calls[0].get("error")
    return not content, not thinks, several, not errs
