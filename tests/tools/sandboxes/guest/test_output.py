"""Output keeps its beginning and its end, and counts what was between them."""

from __future__ import annotations

import pytest

from palestra.tools.sandboxes.guest.output import Output, cut


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_middle_is_cut_however_it_comes(size: int) -> None:
    data = bytes(range(256)) * 4
    output = Output(100)
    for start in range(0, len(data), size):
        output.add(data[start : start + size])
    kept, counts = output.parts()
    assert kept == data[:50] + data[-50:]
    assert counts == [100, 50, 924]


def test_what_fits_is_whole() -> None:
    assert cut("x" * 99, 100) == (b"x" * 99, [99, 50, 0])
    assert cut("", 100) == (b"", [0, 0, 0])


def test_half_characters_become_escapes() -> None:
    assert cut("a\ud800", 100) == (b"a\\ud800", [7, 7, 0])
