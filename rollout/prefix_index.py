"""`PrefixIndex`: which slot of a cache holds the longest beginning of a text.

Texts are found by hashes of their beginnings, a block at a time, and compared token by token.
"""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 16

# Of slots that hold the same blocks, so many are compared beyond them.
_COMPARED = 32


class PrefixIndex:
    """The tokens whose keys each slot holds."""

    def __init__(self) -> None:
        self._texts: dict[int, tuple[int, ...]] = {}
        self._holders: dict[int, dict[int, None]] = {}  # hash of a beginning -> slots, oldest first

    def put(self, slot: int, ids: tuple[int, ...]) -> None:
        """The slot now holds these tokens and nothing else."""
        self.drop(slot)
        self._texts[slot] = ids
        for value in block_hashes(ids):
            self._holders.setdefault(value, {})[slot] = None

    def drop(self, slot: int) -> None:
        """The slot holds nothing of use."""
        for value in block_hashes(self._texts.pop(slot, ())):
            holders = self._holders[value]
            del holders[slot]
            if not holders:
                del self._holders[value]

    def clear(self) -> None:
        """No slot holds anything of use."""
        self._texts.clear()
        self._holders.clear()

    def length(self, slot: int) -> int:
        """How many tokens the slot holds."""
        return len(self._texts.get(slot, ()))

    def find(self, ids: tuple[int, ...]) -> tuple[int, int] | None:
        """A slot and how many leading tokens of `ids` it holds: the longest, None below a block."""
        hashes = block_hashes(ids)
        for count in range(len(hashes), 0, -1):
            holders = self._holders.get(hashes[count - 1])
            if not holders:
                continue
            length, slot = max(
                (common_length(self._texts[slot], ids, start=count * BLOCK), slot)
                for slot in list(reversed(holders))[:_COMPARED]
            )
            if self._texts[slot][:length] == ids[:length]:  # and not just the same hash
                return slot, length
        return None


def block_hashes(ids: Sequence[int]) -> list[int]:
    """A hash of the first block of `ids`, of the first two, and so on."""
    value, hashes = 0, []
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        value = hash((value, ids[end - BLOCK : end]))
        hashes.append(value)
    return hashes


def common_length(one: Sequence[int], other: Sequence[int], *, start: int = 0) -> int:
    """How many leading tokens two texts share, given that they share the first `start`."""
    end = min(len(one), len(other))
    return next((i for i in range(start, end) if one[i] != other[i]), end)
