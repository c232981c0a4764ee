"""Chats in the memory that asynchronous vector environments share with their workers.

Gymnasium reads the buffer once, when it creates it, and afterwards only deep-copies what it read.
Whatever `read` returns must therefore be a live view that decodes anew on every copy: decoded
values would stay those of the first moment for ever (Gymnasium's own `Text` has this flaw).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any, overload

from palestra.types import Message

_LENGTH_BYTES = 4


def create(max_bytes: int, n: int, ctx: Any) -> Any:
    """Zeroed shared memory for `n` chats of up to `max_bytes` encoded bytes each."""
    return ctx.Array("B", n * (_LENGTH_BYTES + max_bytes))


def write(max_bytes: int, memory: Any, index: int, chat: tuple[Message, ...]) -> None:
    """Store the chat of environment `index`.

    Pickle keeps every value exactly (tuples, NaN, lone surrogates), and both ends are ours.

    Raises:
        ValueError: the chat does not fit.
    """
    data = pickle.dumps(chat, protocol=pickle.HIGHEST_PROTOCOL)
    if len(data) > max_bytes:
        raise ValueError(
            f"an observation of {len(data)} bytes does not fit into Chat(max_bytes={max_bytes}); "
            f"give the environment observation_space = Chat(max_bytes={2 * len(data)})"
        )
    start = index * (_LENGTH_BYTES + max_bytes)
    view = memoryview(memory.get_obj()).cast("B")
    view[start : start + _LENGTH_BYTES] = len(data).to_bytes(_LENGTH_BYTES, "little")
    view[start + _LENGTH_BYTES : start + _LENGTH_BYTES + len(data)] = data


class ChatView(Sequence[tuple[Message, ...]]):
    """The current chats of all environments, decoded from shared memory whenever looked at."""

    def __init__(self, max_bytes: int, memory: Any, n: int) -> None:
        self._max_bytes = max_bytes
        self._memory = memory
        self._n = n

    def _decode(self, index: int) -> tuple[Message, ...]:
        start = index * (_LENGTH_BYTES + self._max_bytes)
        view = memoryview(self._memory.get_obj()).cast("B")
        length = int.from_bytes(view[start : start + _LENGTH_BYTES], "little")
        if length == 0:  # nothing was written yet
            return ()
        data = view[start + _LENGTH_BYTES : start + _LENGTH_BYTES + length]
        chat: tuple[Message, ...] = pickle.loads(data)
        return chat

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> tuple[Message, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[Message, ...], ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return tuple(self._decode(i) for i in range(*index.indices(self._n)))
        return self._decode(range(self._n)[index])

    def __iter__(self) -> Iterator[tuple[Message, ...]]:
        return (self._decode(index) for index in range(self._n))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (tuple, ChatView)) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # its value changes with every step

    def __copy__(self) -> tuple[tuple[Message, ...], ...]:
        return tuple(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[tuple[Message, ...], ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return f"ChatView({tuple(self)!r})"
