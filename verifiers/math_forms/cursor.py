"""`TokenCursor`: a position among tokens, and how deep the parser is."""

from __future__ import annotations

from palestra.verifiers.math_forms.tokens import Token
from palestra.verifiers.math_forms.tree import MAX_DEPTH, Unreadable

END = Token("end", "")


class TokenCursor:
    """What every part of the parser does with tokens: look, take, expect."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0  # absolute values that are open: the next bar closes one

    def peek(self, ahead: int = 0) -> Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else END

    def take(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def at(self, kind: str, *texts: str) -> bool:
        token = self.peek()
        return token.kind == kind and (not texts or token.text in texts)

    def expect(self, kind: str, *texts: str) -> Token:
        if not self.at(kind, *texts):
            raise Unreadable(f"expected {texts or kind}, found {self.peek().text!r}")
        return self.take()

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
