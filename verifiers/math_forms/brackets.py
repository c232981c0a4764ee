"""Parse what stands in brackets: groups, tuples, intervals, sets, matrices, cases."""

from __future__ import annotations

from palestra.verifiers.math_forms.expressions import ExpressionParser
from palestra.verifiers.math_forms.tree import Call, Node, Symbol, Unreadable

_CLOSERS = {"(": ")]", "[": ")]", "]": ")][", "{": "}", "\\{": "\\}", "<": "<", "|": "|"}
_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"})


class BracketParser(ExpressionParser):
    """Brackets hold lists of statements, which statements.py reads."""

    in_set = False  # within \{ \}, where a bar or colon means "such that"

    def listed(self) -> Node:
        raise NotImplementedError

    def statement(self) -> Node:
        raise NotImplementedError

    def bracket(self) -> Node:
        """What stands in brackets: a group, tuple, interval, set, floor or ceiling."""
        self.deeper()
        opener = self.take().text
        if opener in ("floor", "ceil", "|"):
            node: Node = Call("abs" if opener == "|" else opener, (self.expression(),))
            self.expect("close", opener)
        elif opener in ("{", "\\{"):
            node = self.braces(opener)
        else:
            bars, self.bars = self.bars, 0
            in_set, self.in_set = self.in_set, False
            inside = self.listed()
            self.bars, self.in_set = bars, in_set
            closer = self.take()
            if closer.kind not in ("close", "open") or closer.text not in _CLOSERS[opener]:
                raise Unreadable(f"{opener} is closed by {closer.text!r}")
            node = _bracketed(opener, closer.text, inside)
        self.depth -= 1
        return node

    def braces(self, opener: str) -> Node:
        closer = _CLOSERS[opener]
        if self.at("close", closer):
            self.take()
            return Call("set", ())
        bars, self.bars = self.bars, 1
        in_set, self.in_set = self.in_set, opener == "\\{"
        inside = self.listed()
        if opener == "\\{" and self.at("operator", "|", ":"):
            self.take()
            self.bars = 0
            inside = Call("such", (inside, self.listed()))
        self.bars, self.in_set = bars, in_set
        self.expect("close", closer)
        if isinstance(inside, Call) and inside.name in ("list", "and"):
            return Call("set", inside.args)
        if isinstance(inside, Call) and inside.name == "such":
            return inside
        return Call("set", (inside,)) if opener == "\\{" else inside

    def matrix(self, name: str) -> Node:
        if name in ("cases", "dcases"):
            return self.cases(name)
        if name not in _MATRICES:
            raise Unreadable(f"unknown environment {name}")
        rows: list[Node] = []
        row: list[Node] = []
        while True:
            if self.at("command", f"end {name}"):
                break
            row.append(self.statement())
            if self.at("separator", "&"):
                self.take()
                continue
            rows.append(Call("row", tuple(row)))
            row = []
            if self.at("separator", "row"):
                self.take()
                continue
            break
        self.expect("command", f"end {name}")
        if not rows or len({len(line.args) for line in rows if isinstance(line, Call)}) != 1:
            raise Unreadable("a matrix needs rows of one length")
        return Call("matrix", tuple(rows))

    def cases(self, name: str) -> Node:
        """A piecewise function: Call("cases", (value, condition, value, condition, ...))."""
        parts: list[Node] = []
        while not self.at("command", f"end {name}"):
            parts.append(self.expression())
            while self.at("separator", ",", "&"):
                self.take()
            if self.at("word") and self.peek().text.lower() in ("if", "when", "for"):
                self.take()
            if self.at("word") and self.peek().text.lower().startswith(("otherwise", "else")):
                self.take()
                parts.append(Symbol("true"))
            else:
                parts.append(self.statement())
            while self.at("separator", "row", ",", ";"):
                self.take()
        self.take()
        if not parts:
            raise Unreadable("no cases")
        return Call("cases", tuple(parts))


def _bracketed(opener: str, closer: str, inside: Node) -> Node:
    several = isinstance(inside, Call) and inside.name in ("list", "and")
    if opener == "<":
        return Call("vector", inside.args if isinstance(inside, Call) and several else (inside,))
    left = "(" if opener in "(]" and not (opener == "]" and closer == "") else "["
    left = "(" if opener == "]" else left
    right = ")" if closer in ")[" else "]"
    if not several:
        if (opener, closer) in (("(", ")"), ("[", "]")):
            return inside
        raise Unreadable("a half-open bracket around one value")
    assert isinstance(inside, Call)
    if left + right == "()":
        return Call("tuple", inside.args)
    if len(inside.args) == 2:
        return Call(f"interval{left}{right}", inside.args)
    if left + right == "[]":
        return Call("bracketed", inside.args)
    raise Unreadable("an interval has two ends")
