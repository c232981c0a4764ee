"""Parse arithmetic: terms, powers, fractions, roots, functions, implicit products."""

from __future__ import annotations

from fractions import Fraction

from palestra.verifiers.math_forms.tokens import Token
from palestra.verifiers.math_forms.tree import (
    MAX_DEPTH,
    Call,
    Node,
    Number,
    Symbol,
    Unreadable,
    negative,
    number,
)
from palestra.verifiers.math_forms.words import number_words

_END = Token("end", "")
_INVERSES = {name: f"a{name}" for name in "sin cos tan cot sec csc sinh cosh tanh".split()}
_FACTOR_COMMANDS = frozenset({"frac", "sqrt", "cbrt", "binom"})
# Letters that, after a number and a space at the end of an answer, are a unit and not an unknown.
_BARE_UNITS = frozenset("mgshLNJWVAKC")


class ExpressionParser:
    """A recursive descent over tokens; each method reads one construct or raises Unreadable."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0  # absolute values that are open: the next bar closes one

    def peek(self, ahead: int = 0) -> Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else _END

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
        while self.at("operator", "^"):
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


def _is_integer(node: Node | None) -> bool:
    return isinstance(node, Number) and node.value.denominator == 1 and node.digits == 0
