"""Parse arithmetic: terms, powers, fractions, roots, functions, implicit products."""

from __future__ import annotations

from palestra.verifiers.math_forms.numerals import NumeralParser
from palestra.verifiers.math_forms.tokens import Token
from palestra.verifiers.math_forms.tree import (
    Call,
    Node,
    Number,
    Symbol,
    Unreadable,
    negative,
    number,
)

_INVERSES = {
    name: f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
}
_FACTOR_COMMANDS = frozenset({"frac", "sqrt", "cbrt", "binom"})
# Letters that, after a number and a space at the end of an answer, are a unit and not an unknown.
_BARE_UNITS = frozenset("mgshLNJWVAKC")


class ExpressionParser(NumeralParser):
    """A recursive descent over tokens; each method reads one construct or raises Unreadable."""

    def expression(self) -> Node:
        """Terms joined by +, -, ± and ∓."""
        self.deeper()
        node = self.leading_term()
        while self.at("operator", "+", "-", "pm", "mp"):
            operator = self.take().text
            term = self.term()
            if operator in ("pm", "mp"):
                node = Call(operator, (node, term))
            else:
                term = negative(term) if operator == "-" else term
                before = node.args if isinstance(node, Call) and node.name == "+" else (node,)
                node = Call("+", (*before, term))
        self.depth -= 1
        return node

    def leading_term(self) -> Node:
        if self.at("operator", "-"):
            self.take()
            return negative(self.leading_term_once())
        if self.at("operator", "+"):
            self.take()
            return self.leading_term_once()
        if self.at("operator", "pm", "mp"):
            return Call(self.take().text, (number(0), self.term()))
        return self.term()

    def leading_term_once(self) -> Node:
        if self.at("operator", "-", "+", "pm", "mp"):
            raise Unreadable("two signs in a row")
        return self.term()

    def term(self) -> Node:
        """Factors joined by *, / or nothing."""
        node = self.signed_factor()
        while True:
            if self.at("operator", "*"):
                self.take()
                node = _product(node, self.signed_factor())
            elif self.at("operator", "/"):
                self.take()
                node = Call("/", (node, self.signed_factor()))
            elif self.starts_factor(node):
                node = _product(node, self.power())
            else:
                return node

    def signed_factor(self) -> Node:
        if self.at("operator", "-", "+"):
            sign = self.take().text
            factor = self.power()
            return negative(factor) if sign == "-" else factor
        return self.power()

    def starts_factor(self, before: Node) -> bool:
        """Whether the next token begins a factor that multiplies what stands before it."""
        token = self.peek()
        match token.kind:
            case "name":
                return not self._is_bare_unit(before, token)
            case "function":
                return True
            case "command":
                return token.text in _FACTOR_COMMANDS or token.text.startswith("begin ")
            case "open":
                if token.text == "(":
                    # (mod 5) and (k \in Z) say something about what stands before them.
                    return self.peek(1).text != "mod" and self.peek(2).text != "in"
                if token.text == "[":  # ]1, 4[ ends with an opening bracket
                    after = self.peek(1)
                    return after.kind not in ("end", "separator", "close") and after.text != "cup"
                return token.text in ("{", "|", "floor", "ceil")
            case "operator":
                return token.text == "|" and not self.bars
            case "number":
                # x2 is a slip for x_2 or x^2, but (3)2 and \sqrt{2}3 are products.
                return isinstance(before, Call) and self.tokens[self.position - 1].kind == "close"
        return False

    def _is_bare_unit(self, before: Node, token: Token) -> bool:
        after = self.peek(1)
        return (
            token.spaced
            and token.text in _BARE_UNITS
            and isinstance(before, Number)
            and self.tokens[self.position - 1].kind == "number"
            and (after.kind in ("end", "separator", "deg") or after.text in ("/", "^"))
        )

    def power(self) -> Node:
        self.deeper()
        node = self.postfixed(self.atom())
        if self.at("operator", "^"):
            self.take()
            node = self.postfixed(Call("^", (node, self.exponent())))
        self.depth -= 1
        return node

    def postfixed(self, node: Node) -> Node:
        while True:
            if self.at("operator", "!", "!!"):
                node = Call(self.take().text, (node,))
            elif self.at("deg"):
                self.take()
                node = Call("deg", (node,))
            else:
                return node

    def exponent(self) -> Node:
        self.deeper()
        if self.at("operator", "-", "+"):
            negate = self.take().text == "-"
            node = self.exponent()
            node = negative(node) if negate else node
        else:
            node = self.atom()
            if self.at("operator", "!"):
                self.take()
                node = Call("!", (node,))
            if self.at("operator", "^"):
                self.take()
                node = Call("^", (node, self.exponent()))
        self.depth -= 1
        return node

    def atom(self) -> Node:
        self.deeper()
        node = self.atom_here()
        self.depth -= 1
        return node

    def atom_here(self) -> Node:
        token = self.peek()
        match token.kind:
            case "number":
                return self.number_atom()
            case "name":
                self.take()
                return self.subscripted(token.text)
            case "word" if len(token.text) == 1 and token.text.isalpha():
                self.take()
                return self.subscripted(token.text)
            case "function":
                return self.function()
            case "command":
                return self.command()
            case "open":
                return self.bracket()
            case "close" if token.text == "]":
                return self.bracket()
            case "operator" if token.text == "|":
                self.take()
                self.bars += 1
                inner = self.expression()
                self.bars -= 1
                self.expect("operator", "|")
                return Call("abs", (inner,))
        raise Unreadable(f"unexpected {token.text or 'end'!r}")

    def bracket(self) -> Node:
        raise NotImplementedError  # statements.py: brackets hold lists and relations

    def matrix(self, name: str) -> Node:
        raise NotImplementedError

    def group(self) -> Node:
        """{ expression } as LaTeX groups it."""
        self.expect("open", "{")
        bars, self.bars = self.bars, 0
        node = self.over(self.expression())
        self.bars = bars
        self.expect("close", "}")
        return node

    def over(self, top: Node) -> Node:
        r"""a \over b and n \choose k: the rest of the group is the lower part."""
        if not self.at("command", "over", "choose"):
            return top
        name = "/" if self.take().text == "over" else "binom"
        return Call(name, (top, self.expression()))

    def subscripted(self, name: str) -> Node:
        while self.at("operator", "_"):
            self.take()
            if self.at("open", "{"):
                self.take()
                inside = []
                while not self.at("close", "}"):
                    if self.at("end"):
                        raise Unreadable("a subscript is not closed")
                    inside.append(self.take().text)
                self.take()
                name += "_" + "".join(inside)
            else:
                name += "_" + self.take().text
        return Symbol(name)

    def command(self) -> Node:
        name = self.take().text
        if name == "frac":
            return Call("/", (self.argument(), self.argument()))
        if name == "binom":
            return Call("binom", (self.argument(), self.argument()))
        if name == "cbrt":
            return Call("root", (self.root_argument(), number(3)))
        if name == "sqrt":
            if self.at("open", "["):
                self.take()
                index = self.expression()
                self.expect("close", "]")
                return Call("root", (self.root_argument(), index))
            return Call("sqrt", (self.root_argument(),))
        if name in ("emptyset", "varnothing"):
            return Call("set", ())
        if name.startswith("begin "):
            return self.matrix(name.removeprefix("begin "))
        raise Unreadable(f"unknown command \\{name}")

    def root_argument(self) -> Node:
        if self.at("open", "{"):
            return self.group()
        return self.atom()

    def function(self) -> Node:
        name = self.take().text
        power: Node | None = None
        base: Node | None = None
        while self.at("operator", "^", "_"):
            if self.take().text == "^":
                power = self.exponent()
            else:
                base = self.base()
        args = self.function_arguments()
        if power == number(-1) or power == Call("neg", (number(1),)):
            if name not in _INVERSES:
                raise Unreadable(f"no inverse of {name}")
            name, power = _INVERSES[name], None
        if name in ("log", "lg"):
            base = base or (number(10) if name == "lg" else None)
            args = args if base is None else (args[0], base)
            name = "log"
        elif name not in ("max", "min", "gcd", "lcm") and len(args) != 1:
            raise Unreadable(f"{name} takes one argument")
        node = Call(name, args)
        return node if power is None else Call("^", (node, power))

    def function_arguments(self) -> tuple[Node, ...]:
        if self.at("open", "(", "["):
            inside = self.bracket()
            if isinstance(inside, Call) and inside.name in ("tuple", "interval[]"):
                return inside.args
            return (inside,)
        negate = self.at("operator", "-")
        if negate:
            self.take()
        node = self.power()
        while self.starts_factor(node) and not self.at("function") and not self.at("open", "("):
            node = _product(node, self.power())
        return (negative(node) if negate else node,)


def _product(first: Node, second: Node) -> Node:
    if isinstance(first, Call) and first.name == "*":
        return Call("*", (*first.args, second))
    return Call("*", (first, second))
