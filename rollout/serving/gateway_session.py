"""`GatewaySession`: answers an agent's requests and records each as a turn of an episode.

A request extends the turn whose prompt and reply it repeats, whichever that is, and is then sent
the ids of that turn plus those of the new messages. A client that forked, edited, cut or re-ordered
its history so branches the episode: nothing is ever taken for an extension that is none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from palestra.rollout.episode import Limits
from palestra.rollout.serving.api_error import ApiError, of_engine
from palestra.rollout.serving.call_ids import IssuedIds
from palestra.rollout.serving.conversations import Conversations, KnownPrompt, same_messages
from palestra.rollout.serving.reply import ReplyDelta, ReplyEnd, ReplyRequest
from palestra.rollout.serving.sampled_replies import count_prompt, find_prompt, sample_replies
from palestra.rollout.serving.wrong_calls import find_wrong_calls
from palestra.types import Failure, Message, Sampling, ToolSchema, Turn

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat
    from palestra.rollout.engine import Engine

# The codes of refusals that end an episode, and what its stop reason then is.
_LIMITS = {
    "max_turns": "max_turns",
    "token_budget": "token_budget",
    "context_length_exceeded": "context",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Admitted:
    """A request that is being answered, and how many tokens it may have."""

    request: ReplyRequest
    wanted: int  # tokens, by its client and the gateway
    known: KnownPrompt


class GatewaySession:
    """One episode of an agent: a `Replier` that samples as the trainer wants and keeps the turns.

    `sampling` goes before what clients ask for; of theirs, only a lower `max_tokens`, `stop` and
    what the reply must look like count. `seed_of` gives the seed of request number n. A reply that
    failed, or whose client went away before its end, is no turn. Requests that run at the same
    time may each use what is left of the episode's tokens.

    `trouble` is set while the last thing that happened is that the engine failed.
    """

    models = None

    def __init__(
        self,
        engine: Engine,
        chat_format: ChatFormat,
        *,
        sampling: Sampling,
        limits: Limits,
        seed_of: Callable[[int], int],
        lane: AbstractAsyncContextManager[None] | None = None,
    ) -> None:
        self._engine = engine
        self._chat_format = chat_format
        self._sampling = sampling
        self._limits = limits
        self._seed_of = seed_of
        self._lane = nullcontext() if lane is None else lane
        self._conversations = Conversations(chat_format, max_turns=None)
        self._turns: list[Turn] = []
        self._numbers: dict[int, int] = {}  # of a turn, by the identity that parents have
        self._begun = 0
        self._in_flight = 0
        self._tokens = 0  # sampled so far
        self._waits: set[asyncio.Timeout] = set()
        self._is_closed = False
        self._stop_reason = "answer"
        self._generating_s = 0.0  # while at least one reply was being generated
        self._since = time.perf_counter()  # when the last one began, or the last of all ended
        self.prompt: tuple[Message, ...] = ()  # the conversation of the first turn
        self.tools: tuple[ToolSchema, ...] = ()
        self.conversation: tuple[Message, ...] = ()  # of the last turn, its reply included
        self.trouble: Failure | None = None
        self.refusal: ApiError | None = None  # the last that it was told, if nothing came after

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The recorded turns, as they ended."""
        return tuple(self._turns)

    @property
    def stop_reason(self) -> str:
        """What ended the episode, were it to end now; see `Episode`."""
        return self._stop_reason

    @property
    def generating_s(self) -> float:
        """For how many seconds replies have been generated."""
        now = time.perf_counter() - self._since if self._in_flight else 0.0
        return self._generating_s + now

    @property
    def idle_s(self) -> float:
        """For how many seconds nothing was asked."""
        return 0.0 if self._in_flight else time.perf_counter() - self._since

    def close(self) -> None:
        """Take no more requests; generations in progress end and are no turns."""
        self._is_closed = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())

    async def reply(
        self, request: ReplyRequest, *, stream: bool
    ) -> AsyncGenerator[ReplyDelta, None]:
        """See `Replier`.

        Raises:
            ApiError: also if the episode is closed (410), or at one of its limits (400).
        """
        try:
            admitted = self._admit(request)
        except ApiError as error:
            self._refuse(error)
            raise
        if not self._in_flight:
            self._since = time.perf_counter()
        self._in_flight += 1
        try:
            async with self._lane, aclosing(self._sample(admitted, stream=stream)) as deltas:
                async for delta in deltas:
                    yield delta
        except ApiError as error:
            self._refuse(error)
            raise
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                now = time.perf_counter()
                self._generating_s += now - self._since
                self._since = now

    def count_prompt(self, request: ReplyRequest) -> int:
        """See `Replier`."""
        if self._is_closed:
            raise episode_closed()
        return count_prompt(self._conversations, self._chat_format, request)

    def _admit(self, request: ReplyRequest) -> _Admitted:
        if self._is_closed:
            raise episode_closed()
        if request.n > 1:
            raise ApiError(
                400,
                f"a recorded episode gives one reply to a request, got n = {request.n}: ask again "
                "for another",
                code="unsupported_value",
                param="n",
            )
        if len(self._turns) + self._in_flight >= self._limits.max_turns:
            raise ApiError(
                400, f"the episode has had its {self._limits.max_turns} turns", code="max_turns"
            )
        wanted = min(request.sampling.max_tokens, self._sampling.max_tokens)
        allowed = wanted
        if self._limits.max_total_tokens is not None:
            allowed = min(wanted, self._limits.max_total_tokens - self._tokens)
        if allowed < 1:
            raise ApiError(
                400,
                f"the episode has used its {self._limits.max_total_tokens} tokens",
                code="token_budget",
            )
        known = find_prompt(self._conversations, request)
        sampling = replace(
            self._sampling,
            max_tokens=allowed,
            seed=self._seed_of(self._begun),
            structure=request.sampling.structure,
        )
        self._begun += 1
        return _Admitted(request=replace(request, sampling=sampling), wanted=wanted, known=known)

    async def _sample(
        self, admitted: _Admitted, *, stream: bool
    ) -> AsyncGenerator[ReplyDelta, None]:
        """The reply, within the time that a generation may take."""
        timeout_s = self._limits.generation_timeout_s
        started = time.perf_counter()
        issued = IssuedIds()
        deadline = asyncio.get_running_loop().time() + timeout_s
        replies = sample_replies(
            self._engine, self._chat_format, admitted.request, admitted.known, stream=stream
        )
        async with aclosing(replies):
            while True:
                if self._is_closed:
                    raise episode_closed()
                # Not around the loop: a client that is slow to read is no engine that is.
                wait = asyncio.timeout_at(deadline)
                try:
                    async with wait:
                        self._waits.add(wait)
                        delta = await anext(replies, None)
                except TimeoutError as error:
                    if self._is_closed:
                        raise episode_closed() from None
                    # Nobody knows whether it ever comes back.
                    self.close()
                    raise of_engine(error) from Failure("engine", f"no reply in {timeout_s:g} s")
                finally:
                    self._waits.discard(wait)
                if delta is None:
                    return
                if self._is_closed:  # in the same moment: whoever closed it has read the turns
                    raise episode_closed()
                if delta.end is not None:
                    self._record(admitted, delta.end, time.perf_counter() - started)
                yield issued.rename(delta)

    def _record(self, admitted: _Admitted, end: ReplyEnd, seconds: float) -> None:
        known = admitted.known
        parent = None if known.parent is None else self._numbers[id(known.parent)]
        turn = replace(
            end.turn,
            parent=parent,
            # What clients are told of a malformed call is its text; the ids still say what it was.
            tool_results=find_wrong_calls(
                self._chat_format.parse(end.turn.completion_ids), admitted.request.tools
            ),
            timings={"generate": seconds},
        )
        messages = tuple(known.messages)
        if not self._turns:
            self.prompt, self.tools = messages, admitted.request.tools
        else:
            self._continue(parent, messages)
        self._conversations.remember(known, admitted.request.tools, turn)
        self._numbers[id(turn)] = len(self._turns)
        self._turns.append(turn)
        self._tokens += len(turn.completion_ids)
        self.conversation = (*messages, turn.message)
        self.trouble = self.refusal = None
        # What was refused for want of turns or tokens stays so, whatever was still in progress.
        if self._stop_reason not in ("max_turns", "token_budget"):
            was_cut = turn.stop_reason == "length"
            self._stop_reason = _what_cut(turn, admitted) if was_cut else "answer"

    def _continue(self, parent: int | None, messages: tuple[Message, ...]) -> None:
        """What came after the last turn: more of its conversation, or another one."""
        before = self.conversation
        # Where a template rewrites earlier turns, one that goes on has no parent.
        goes_on = parent == len(self._turns) - 1 or same_messages(messages[: len(before)], before)
        self._turns[-1] = replace(
            self._turns[-1],
            observation=messages[len(before) :] if goes_on else messages,
            replaces=not goes_on,
        )

    def _refuse(self, error: ApiError) -> None:
        self.refusal = error
        if error.status >= 500:
            cause = error.__cause__
            self.trouble = (
                cause
                if isinstance(cause, Failure)
                else Failure("engine", f"{type(cause or error).__name__}: {cause or error}")
            )
        elif error.code in _LIMITS:
            self._stop_reason = _LIMITS[error.code]


def _what_cut(turn: Turn, admitted: _Admitted) -> str:
    """Which limit cut a reply short."""
    sampled = len(turn.completion_ids)
    if sampled < admitted.request.sampling.max_tokens:
        return "context"
    return "token_budget" if sampled < admitted.wanted else "length"


def episode_closed() -> ApiError:
    """What requests are told that come too late."""
    return ApiError(410, "the episode is closed: open another one", code="episode_closed")
