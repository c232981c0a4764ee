"""Sampled tokens as text, as they come, and as the log-probabilities that clients may ask for."""

from __future__ import annotations

import codecs
import math
from collections import deque
from collections.abc import Sequence, Set
from dataclasses import replace

from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import BadAnswer, BadLogprobs
from palestra.rollout.inert_text import MARK
from palestra.rollout.serving.reply import TokenLogprob
from palestra.rollout.serving.text_scan import StopSearch
from palestra.rollout.token_bytes import TokenBytes

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class TokenText:
    """Turns tokens into text that ends before the first of the `stop` strings.

    Nothing is decoded twice: a token's bytes are known, and characters are held back until they
    are whole, as is what may be the beginning of a stop string. Tokens of `stop_ids` are no text
    unless others follow. `count` tokens belong to the text, the last of a stop string included.

    With `wants_logprobs` each token is told along with the text that it begins in; none that ends a
    turn or begins in a stop string is.
    """

    def __init__(
        self,
        token_bytes: TokenBytes,
        *,
        stop_ids: Set[int] = frozenset(),
        stop: Sequence[str] = (),
        wants_logprobs: bool = False,
    ) -> None:
        self._token_bytes = token_bytes
        self._stop_ids = stop_ids
        self._wants_logprobs = wants_logprobs
        self._one_by_one = bool(stop) or wants_logprobs
        self._utf8 = _Utf8Decoder("replace")
        self._stop = StopSearch(stop)
        self._ends: list[int] = []  # tokens that end the turn if nothing follows
        self._decoded = self._told = 0  # characters
        self._tokens: deque[tuple[int, TokenLogprob]] = deque()  # untold, with where each begins
        self.count = 0

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text: no further token belongs to it."""
        return self._stop.found

    def push(self, piece: Piece) -> str:
        """The text that a piece adds.

        Raises:
            BadAnswer, BadLogprobs: the piece is inconsistent.
        """
        _check(piece)
        if not self._one_by_one:
            return self._read(piece.ids)
        text = []
        for place, token_id in enumerate(piece.ids):
            if self._stop.found is not None:
                break
            if self._wants_logprobs:
                self._note(piece, place)
            text.append(self._read((token_id,)))
        return "".join(text)

    def finish(self) -> str:
        """The text that was held back."""
        if self._stop.found is not None:
            return ""
        text = self._free(self._utf8.decode(b"", final=True)) + self._stop.flush()
        for _ in range(min(len(self._ends), len(self._tokens))):
            self._tokens.pop()
        if self._stop.found is None:
            self._told = self._decoded + 1  # also the tokens that have no text
        return text

    def take_tokens(self) -> tuple[TokenLogprob, ...]:
        """The tokens that were added since the last time."""
        tokens = []
        while self._tokens and self._tokens[0][0] < self._told:
            tokens.append(self._tokens.popleft()[1])
        return tuple(tokens)

    def _read(self, ids: Sequence[int]) -> str:
        self.count += len(ids)
        end = len(ids)
        while end and ids[end - 1] in self._stop_ids:
            end -= 1
        text = ""
        if end:
            known = self._token_bytes
            data = b"".join([known[token_id] for token_id in (*self._ends, *ids[:end])])
            self._ends.clear()
            text = self._free(self._utf8.decode(data))
        self._ends += ids[end:]
        return text

    def _free(self, text: str) -> str:
        text = text.replace(MARK, "")
        self._decoded += len(text)
        free = self._stop.push(text)
        self._told += len(free)
        return free

    def _note(self, piece: Piece, place: int) -> None:
        top = piece.top_logprobs[place] if piece.top_logprobs else ()
        token = self._token(piece.ids[place], piece.logprobs[place])
        likeliest = tuple(self._token(token_id, logprob) for token_id, logprob in top)
        self._tokens.append((self._decoded, replace(token, top=likeliest)))

    def _token(self, token_id: int, logprob: float) -> TokenLogprob:
        data = self._token_bytes[token_id]
        return TokenLogprob(text=data.decode(errors="replace"), bytes=data, logprob=logprob)


def _check(piece: Piece) -> None:
    """An engine's mistakes must reach neither clients nor training data."""
    count = len(piece.ids)
    if len(piece.logprobs) != count or len(piece.top_logprobs) not in (0, count):
        raise BadAnswer(
            f"{count} tokens came with {len(piece.logprobs)} log-probabilities and "
            f"{len(piece.top_logprobs)} lists of likely tokens"
        )
    if not all(map(math.isfinite, piece.logprobs)):
        raise BadLogprobs("a log-probability is not a finite number")
