"""Frames come whole or not at all, whatever the other side sends."""

from __future__ import annotations

import os
import struct

import pytest

from palestra.tools.sandboxes.guest.frames import Frames, Gone, pack, receive


def test_frames_are_the_same_however_they_are_cut() -> None:
    data = pack({"a": "ü"}, b"\0payload") + pack({}) + pack({"b": [1]}, b"")
    for size in (1, 3, 7, len(data)):
        frames, found = Frames(), []
        for start in range(0, len(data), size):
            frames.feed(data[start : start + size])
            while (frame := frames.take()) is not None:
                found.append(frame)
        assert found == [({"a": "ü"}, b"\0payload"), ({}, b""), ({"b": [1]}, b"")]


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">II", 0xFFFFFFFF, 0),
        struct.pack(">II", 2, 0xFFFFFFFF) + b"{}",
        struct.pack(">II", 0, 0),
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 2, 0) + b"\xff\xfe",
        struct.pack(">II", 100_000, 0) + b"[" * 100_000,
        struct.pack(">II", 5, 0) + b'{"a":',
    ],
)
def test_what_is_no_frame_ends_the_connection(data: bytes) -> None:
    frames = Frames()
    frames.feed(data)
    with pytest.raises(Gone):
        frames.take()


def test_a_payload_above_the_bound_is_refused_before_it_has_come() -> None:
    frames = Frames()
    frames.max_payload_bytes = 10
    frames.feed(struct.pack(">II", 2, 11))
    with pytest.raises(Gone):
        frames.take()


def test_nothing_of_the_next_frame_is_taken_from_the_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, pack({"n": 1}, b"x") + pack({"n": 2}, b"y"))
    os.close(writer)
    assert receive(reader) == ({"n": 1}, b"x")
    assert receive(reader) == ({"n": 2}, b"y")
    with pytest.raises(Gone):
        receive(reader)
    os.close(reader)
