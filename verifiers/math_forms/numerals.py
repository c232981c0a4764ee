"""Parse numerals: mixed numbers, numerals in a base, digits as a LaTeX command takes them."""

from __future__ import annotations

from fractions import Fraction

from palestra.verifiers.math_forms.cursor import TokenCursor
from palestra.verifiers.math_forms.tokens import Token
from palestra.verifiers.math_forms.tree import Call, Node, Number, Symbol, Unreadable, number
from palestra.verifiers.math_forms.words import number_words


class NumeralParser(TokenCursor):
    """Numbers and the arguments of commands."""

    def atom(self) -> Node:
        raise NotImplementedError  # expressions.py

    def group(self) -> Node:
        raise NotImplementedError  # expressions.py

    def number_atom(self) -> Node:
        token = self.take()
        assert token.number is not None
        value = token.number
        if self.at("operator", "_"):
            self.take()
            base = self.base()
            return Call("base", (Symbol(token.text.replace(",", "").lower()), base))
        if value.digits == 0 and value.value.denominator == 1:
            part = self._fraction_after()
            if part is not None:
                return Number(value.value + part)
        if self.at("number"):
            raise Unreadable("two numbers in a row")
        return value

    def base(self) -> Node:
        r"""The base of a numeral: 52_8, 52_{8} or 52_{\text{eight}}."""
        words = self.peek(1) if self.at("open", "{") else self.peek()
        spelled = number_words(words.text) if words.kind == "word" else None
        if spelled is None or not spelled.isdigit():
            return self.argument()
        self.position += 3 if self.at("open", "{") else 1
        return number(int(spelled))

    def _fraction_after(self) -> Fraction | None:
        r"""The proper fraction of a mixed number, 5 1/2 or 5\frac{1}{2}, taken if it is there."""
        start = self.position
        top: Node | None = None
        bottom: Node | None = None
        if self.at("command", "frac"):
            self.take()
            top, bottom = self.argument(), self.argument()
        elif self.at("number") and self.peek().spaced and self.peek(1).text == "/":
            if self.peek(2).kind == "number":
                top, bottom = self.peek().number, self.peek(2).number
                self.position += 3
        else:
            return None
        if _is_integer(top) and _is_integer(bottom):
            assert isinstance(top, Number)
            assert isinstance(bottom, Number)
            if 0 < top.value < bottom.value and not self.at("operator", "^", "!"):
                return top.value / bottom.value
            raise Unreadable("a mixed number needs a proper fraction")
        self.position = start
        return None

    def argument(self) -> Node:
        r"""One argument of a LaTeX command: a group in braces, or a single digit or letter."""
        if self.at("open", "{"):
            return self.group()
        token = self.peek()
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            # \frac12 is one half: the command takes a digit each time.
            rest = token.text[1:]
            value = Number(Fraction(int(rest)))
            self.tokens[self.position] = Token("number", rest, False, value)
            return number(int(token.text[0]))
        if token.kind in ("number", "name", "command") or token.kind == "word":
            return self.atom() if token.kind != "number" else self._plain_number()
        raise Unreadable(f"no argument at {token.text!r}")

    def _plain_number(self) -> Node:
        value = self.take().number
        assert value is not None
        return value


def _is_integer(node: Node | None) -> bool:
    return isinstance(node, Number) and node.value.denominator == 1 and node.digits == 0
