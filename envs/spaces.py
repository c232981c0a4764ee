"""The two Gymnasium spaces of palestra: `Chat` (observations) and `Reply` (actions).

Batches of both are plain tuples, which is what Gymnasium makes of any space it does not know;
`iterate` must stay unregistered for them, because for a registered space Gymnasium would iterate
over the characters of each reply instead of over the replies. Shared memory is in `chat_memory`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Space, Tuple
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector.utils import (
    batch_differing_spaces,
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)

from palestra.envs import chat_memory
from palestra.types import Message

Observation = tuple[Message, ...]
Action = Message | str

ROLES = ("system", "developer", "user", "assistant", "tool")
_WORDS = ("add", "twelve", "why", "not", "answer", "perhaps", "seven", "the", "sum", "is")


class Chat(Space[Observation]):
    """Tuples of chat messages, possibly empty.

    `max_bytes` bounds one encoded observation in the shared memory of asynchronous vector
    environments; nothing else is bounded by it.
    """

    def __init__(
        self, max_bytes: int = 65_536, seed: int | np.random.Generator | None = None
    ) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, got {max_bytes}")
        super().__init__(seed=seed)
        self.max_bytes = max_bytes

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Observation:
        """One to three short user and tool messages."""
        return tuple(_sample_message(self.np_random) for _ in range(self.np_random.integers(1, 4)))

    def contains(self, x: Any) -> bool:
        return isinstance(x, tuple) and all(is_message(message) for message in x)

    def to_jsonable(self, sample_n: Iterable[Observation]) -> list[list[Message]]:
        return [list(chat) for chat in sample_n]

    def from_jsonable(self, sample_n: list[list[Message]]) -> list[Observation]:
        return [tuple(chat) for chat in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chat) and other.max_bytes == self.max_bytes

    def __hash__(self) -> int:
        return hash((Chat, self.max_bytes))

    def __repr__(self) -> str:
        return f"Chat(max_bytes={self.max_bytes})"


class Reply(Space[Action]):
    """What a policy says: raw text, or an assistant message as a dictionary."""

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Action:
        """A few words and a number."""
        return _sample_text(self.np_random)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) or is_reply(x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply)

    def __hash__(self) -> int:
        return hash(Reply)

    def __repr__(self) -> str:
        return "Reply()"


def is_message(x: Any) -> bool:
    """Whether this is a chat message: a known role, and text, parts or nothing as content."""
    return (
        isinstance(x, dict)
        and x.get("role") in ROLES
        and isinstance(x.get("content"), (str, list, type(None)))
    )


def is_reply(x: Any) -> bool:
    """Whether this is an assistant message; its tool calls, if any, must be dictionaries."""
    if not is_message(x) or x["role"] != "assistant":
        return False
    calls = x.get("tool_calls")
    return calls is None or (
        isinstance(calls, (list, tuple)) and all(isinstance(call, dict) for call in calls)
    )


def copy_message(message: Message) -> Message:
    """An independent copy; text, the usual content, is shared."""
    return {
        key: value if isinstance(value, str) else copy.deepcopy(value)
        for key, value in message.items()
    }


def _sample_text(rng: np.random.Generator) -> str:
    words = [_WORDS[i] for i in rng.integers(0, len(_WORDS), int(rng.integers(0, 5)))]
    return " ".join([*words, str(rng.integers(-999, 1000))])


def _sample_message(rng: np.random.Generator) -> Message:
    message: Message = {"role": "user", "content": _sample_text(rng)}
    if rng.integers(2):
        return {**message, "role": "tool", "tool_call_id": "call_0", "name": "calculator"}
    return message


@create_shared_memory.register(Chat)
def _create_shared_memory(space: Chat, n: int = 1, ctx: Any = None) -> Any:
    return chat_memory.create(space.max_bytes, n, ctx)


@read_from_shared_memory.register(Chat)
def _read_from_shared_memory(space: Chat, shared_memory: Any, n: int = 1) -> chat_memory.ChatView:
    return chat_memory.ChatView(space.max_bytes, shared_memory, n)


@write_to_shared_memory.register(Chat)
def _write_to_shared_memory(
    space: Chat, index: int, value: Observation, shared_memory: Any
) -> None:
    chat_memory.write(space.max_bytes, shared_memory, index, value)


@batch_differing_spaces.register(Chat)
@batch_differing_spaces.register(Reply)
def _batch_differing_spaces(  # type: ignore[misc]  # it dispatches on the first space's type
    spaces: Sequence[Space[Any]],
) -> Tuple[Any]:
    return Tuple([copy.deepcopy(space) for space in spaces])


@is_space_dtype_shape_equiv.register(Chat)
@is_space_dtype_shape_equiv.register(Reply)
def _is_equivalent(space_1: Space[Any], space_2: Space[Any]) -> bool:
    return space_1 == space_2
