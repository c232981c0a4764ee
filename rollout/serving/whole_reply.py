"""Replies that are answered in one piece."""

from __future__ import annotations

from contextlib import aclosing

from starlette.requests import Request

from palestra.rollout.serving.event_stream import while_connected
from palestra.rollout.serving.reply import Replier, ReplyDelta, ReplyEnd, ReplyRequest


async def whole_reply(
    replier: Replier, wanted: ReplyRequest, request: Request, *, in_pieces: bool = False
) -> list[ReplyDelta]:
    """All deltas of a request: one for each reply, unless they are asked for `in_pieces`.

    The generation is cancelled when the client of `request` leaves. Raises ApiError.
    """
    return await while_connected(request.receive, _collect(replier, wanted, in_pieces))


def end_of(deltas: list[ReplyDelta]) -> ReplyEnd:
    """How a reply ended."""
    end = deltas[-1].end
    assert end is not None, "a reply without an end"
    return end


async def _collect(replier: Replier, wanted: ReplyRequest, in_pieces: bool) -> list[ReplyDelta]:
    async with aclosing(replier.reply(wanted, stream=in_pieces)) as deltas:
        return [delta async for delta in deltas]
