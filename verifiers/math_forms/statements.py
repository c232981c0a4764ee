"""Parse answers around arithmetic: lists, relations, sets, intervals, matrices, units."""

from __future__ import annotations

import re

from palestra.verifiers.math_forms.brackets import BracketParser
from palestra.verifiers.math_forms.tokens import tokenize
from palestra.verifiers.math_forms.tree import (
    CONSTANTS,
    MAX_TREE_DEPTH,
    Call,
    Node,
    Symbol,
    Unreadable,
    depth_of,
    letters,
    number,
)
from palestra.verifiers.math_forms.words import SCALES

_RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "in", "~", "equiv")
_LIST_SEPARATORS = (",", ";", "and", "or", "row")
_APPROXIMATE = frozenset({"about", "approximately", "roughly", "approx", "around", "nearly"})


def parse(text: str) -> Node:
    """The tree of a cleaned answer. Raises Unreadable. Time is linear, depth and size bounded."""
    parser = StatementParser(tokenize(text))
    node = parser.listed()
    if parser.peek().kind != "end":
        raise Unreadable(f"unexpected {parser.peek().text!r}")
    if depth_of(node) > MAX_TREE_DEPTH:
        raise Unreadable("nested too deeply")
    return node


_OPERATIONS = frozenset(
    {"squared", "cubed", "plus", "minus", "times", "over", "divided", "factorial", "half", "not"}
)
# "3k + 1 for some integer k", "where k is an integer"
_INTEGER = re.compile(r"\bintegers?\s+([a-z])\b|\b([a-z])\s+(?:is|an|any|are|be)\b.*\binteger")


class StatementParser(BracketParser):
    """Lists of relations between values with units."""

    def listed(self) -> Node:
        """Statements separated by commas, "and" or "or": Call("list" or "and", ...)."""
        items = [self.statement()]
        joined = False
        while self.at("separator", *_LIST_SEPARATORS):
            while self.at("separator", *_LIST_SEPARATORS):
                joined |= self.take().text == "and"
            if self.peek().kind in ("end", "close"):
                break
            items.append(self.statement())
        if len(items) == 1:
            return items[0]
        return Call("and" if joined else "list", tuple(items))

    def statement(self) -> Node:
        """Sides joined by relations: Call("rel:< <=", sides)."""
        self.deeper()
        if self.at("operator", "~"):
            self.take()
            self.depth -= 1
            return Call("approx", (self.side(),))
        if self.at("word") and self.peek().text.lower() in _APPROXIMATE:
            self.take()
            self.depth -= 1
            return Call("approx", (self.side(),))
        sides: list[Node] = [self.label() or self.side()]
        operators: list[str] = []
        while self.at("operator", *_RELATIONS):
            operators.append(self.take().text)
            sides.append(self.side())
        self.depth -= 1
        if not operators:
            return sides[0]
        if operators[-1] == "~":
            # x = \\sqrt{2} \\approx 1.414 has an exact member, too.
            exact = sides[-2:-1] if len(sides) > 2 or not letters(sides[0]) else []
            return Call("approx", (sides[-1], *exact))
        return Call("rel:" + " ".join(operators), tuple(sides))

    def label(self) -> Node | None:
        """A name before "=" that is no expression: f(x), f'(x), \\angle ABC, words."""
        start = self.position
        text = ""
        if self.at("command", "angle", "triangle", "overline", "measuredangle", "mathrm"):
            text = self.take().text
            while self.at("name") or self.at("open", "{") or self.at("close", "}"):
                text += self.take().text
        elif self.at("word") and self.peek().text not in ("dollar", "%"):
            words = []
            while self.at("word") or self.at("name"):
                words.append(self.take().text)
            text = " ".join(words)
        elif self.at("name") and self.peek().text not in CONSTANTS:
            text = self.take().text
            if self.at("operator", "_"):
                text = self.subscripted(text).name  # type: ignore[union-attr]
            while self.at("operator", "'"):
                text += self.take().text
            if self.at("operator", "^") and self.peek(1).text in ("{", "-"):
                while not self.at("open", "(") and self.peek().kind != "end":
                    text += self.take().text
            if self.at("open", "("):
                text += self._bracketed_text()
        if text and self.at("operator", "=", ":") and self.position - start <= 24:
            if self.at("operator", ":"):
                if len(text) < 4:
                    self.position = start
                    return None
                self.take()
                return self.side()
            return Symbol(text)
        self.position = start
        return None

    def _bracketed_text(self) -> str:
        depth, text = 0, ""
        while self.peek().kind != "end":
            token = self.take()
            depth += (token.kind == "open") - (token.kind == "close")
            text += token.text
            if depth == 0:
                break
        return text

    def side(self) -> Node:
        """A value with its unit, a ratio, or sets joined by ∪, ∩ and ∖."""
        node = self.operand()
        while self.at("operator", "cup", "cap", "minus"):
            operator = self.take().text
            node = Call(operator, (node, self.operand()))
        return node

    def operand(self) -> Node:
        currency = ""
        sign = self.at("operator", "-") and self.peek(1).text in ("dollar", "euro", "gbp")
        if sign:
            self.take()
        if self.at("word", "dollar", "euro", "gbp"):
            currency = self.take().text
        node = self.over(self.expression())
        if sign:
            node = Call("neg", (node,))
        if self.at("operator", "in") and (
            self.peek(1).kind in ("end", "separator") or self.peek(1).text == ")"
        ):
            self.take()  # inches
            return Call("unit", (node, Symbol("inch")))
        if self.at("operator", ":") and not self.in_set:
            return self.ratio(node, ":")
        if self.at("word", "to"):
            return self.ratio(node, "to")
        if self.at("operator", "mod") or (self.at("open", "(") and self.peek(1).text == "mod"):
            return self.modulus(node)
        if self.at("open", "(") and self.peek(2).text == "in":
            return Call("such", (node, self.bracket()))
        phrase = self.unit_phrase(node)
        if phrase.partition(" ")[0].lower() in _OPERATIONS:
            raise Unreadable(f"{phrase} is no unit")
        integer = _INTEGER.search(phrase)
        if integer is not None:
            name = integer[1] or integer[2]
            return Call("such", (node, Call("rel:in", (Symbol(name), Symbol("Z")))))
        first, _, rest = phrase.partition(" ")
        if first.lower() in SCALES:
            node, phrase = Call("*", (node, number(SCALES[first.lower()]))), rest
        if currency:
            return Call("unit", (node, Symbol(f"{currency} {phrase}".strip())))
        if isinstance(node, Call) and node.name == "deg":
            name = {"c": "celsius", "f": "fahrenheit"}.get(phrase.lower(), "degree")
            return Call("unit", (node.args[0], Symbol(name)))
        if phrase.startswith("%") or phrase.lower().startswith("percent"):
            return Call("percent", (node,))
        return Call("unit", (node, Symbol(phrase))) if phrase else node

    def unit_phrase(self, node: Node) -> str:
        """The words and unit signs up to the end of this side."""
        start = self.position
        bare = self.at("name") and self._is_bare_unit(node, self.peek())
        if not self.at("word") and not bare and not self._is_degree_letter(node):
            return ""
        phrase = []
        while self.peek().kind in ("word", "name", "number", "function") or self.at(
            "operator", "/", "^", "*", "-", "'"
        ):
            token = self.take()
            if token.kind == "number" and self.tokens[self.position - 2].text not in ("^", "-"):
                self.position = start
                raise Unreadable("a number inside a unit")
            phrase.append(token.text)
        if self.at("open", "{") and phrase[-1] == "^":
            self.take()
            phrase.append(self.take().text)
            if phrase[-1] == "-":
                phrase.append(self.take().text)
            self.expect("close", "}")
            phrase.append(self.unit_phrase_rest())
        return " ".join(phrase).replace("^ ", "^").strip()

    def unit_phrase_rest(self) -> str:
        words = []
        while self.peek().kind in ("word", "name") or self.at("operator", "/"):
            words.append(self.take().text)
        return " ".join(words)

    def _is_degree_letter(self, node: Node) -> bool:
        return isinstance(node, Call) and node.name == "deg" and self.at("name", "C", "F")

    def ratio(self, first: Node, separator: str) -> Node:
        parts = [first]
        while self.at("operator", ":") or self.at("word", "to"):
            if self.take().text != separator:
                raise Unreadable("a mixed ratio")
            parts.append(self.expression())
        return Call("ratio", tuple(parts))

    def modulus(self, node: Node) -> Node:
        bracketed = self.at("open", "(")
        if bracketed:
            self.take()
        self.expect("operator", "mod")
        modulus = self.expression()
        if bracketed:
            self.expect("close", ")")
        return Call("mod", (node, modulus))
