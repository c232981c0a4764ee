"""Split a cleaned answer into numbers, names, operators, brackets and words."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from palestra.verifiers.math_forms.tree import MAX_DIGITS, MAX_TOKENS, Number, Unreadable
from palestra.verifiers.math_forms.units import is_unit


class Token(NamedTuple):
    """`kind` is number, name, function, command, operator, open, close, separator, word or deg."""

    kind: str
    text: str
    spaced: bool = False  # whether space stands before it
    number: Number | None = None


_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau"
_GREEK += " phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"
_NAMES = {name: name for name in _GREEK.split()}
_NAMES |= {"pi": "pi", "Pi": "Pi", "infty": "oo", "infinity": "oo", "inf": "oo", "oo": "oo"}
_NAMES |= {"varepsilon": "epsilon", "vartheta": "theta", "varphi": "phi", "ell": "ell", "hbar": "h"}

_PLAIN_FUNCTIONS = "sin cos tan cot sec csc sinh cosh tanh coth ln log exp max min gcd lcm abs"
_PLAIN_FUNCTIONS += " asin acos atan floor ceil"
_TRIGONOMETRIC = "sin cos tan cot sec csc"
FUNCTIONS = {name: name for name in _PLAIN_FUNCTIONS.split()}
FUNCTIONS |= {f"arc{name}": f"a{name}" for name in _TRIGONOMETRIC.split()}
FUNCTIONS |= {"tg": "tan", "ctg": "cot", "cosec": "csc", "arctg": "atan", "lg": "lg"}
FUNCTIONS |= {"arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "Re": "re", "Im": "im"}

_OPERATORS = {"times": "*", "cdot": "*", "ast": "*", "div": "/", "pm": "pm", "mp": "mp"}
_OPERATORS |= {"le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "lt": "<"}
_OPERATORS |= {"geqslant": ">=", "gt": ">", "ne": "!=", "neq": "!=", "in": "in", "cup": "cup"}
_OPERATORS |= {"cap": "cap", "setminus": "minus", "backslash": "minus", "approx": "~", "sim": "~"}
_OPERATORS |= {"equiv": "equiv", "mid": "|", "vert": "|", "colon": ":", "prime": "'", "mod": "mod"}
_OPERATORS |= {"bmod": "mod", "pmod": "mod", "simeq": "~", "approxeq": "~", "bullet": "*"}
_OPENING = {"lvert": "|", "langle": "<", "lfloor": "floor", "lceil": "ceil", "lbrace": "\\{"}
_OPENING |= {"lbrack": "[", "lparen": "("}
_CLOSING = {"rvert": "|", "rangle": "<", "rfloor": "floor", "rceil": "ceil", "rbrace": "\\}"}
_CLOSING |= {"rbrack": "]", "rparen": ")"}
_DOTS = frozenset({"ldots", "dots", "cdots", "dotsc", "dotsb", "vdots", "ddots"})
_ALIASES = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom"}
_STYLED = r"mathbf|boldsymbol|mathcal|mathit|mathsf|bm|vec|hat|overrightarrow|widehat|pmb"
_WORDY = r"text|textbf|textit|textrm|textsf|texttt|mathrm|mbox|operatorname\*?|emph|textnormal"

_ALL = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<repeating>\d{0,60}\.\d{0,40}?(?:\\(?:overline|bar)\s*\{?\d{1,60}\}?|\\dot\s*\{?\d\}?(?:\d{0,60}\\dot\s*\{?\d\}?)?"
    r"|\d{1,60}\s*(?:\.\.\.|\\[lc]?dots)))"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+(?![\d.]))?"
    r"|\.\d+(?:[eE][-+]?\d+)?)"
    r"|(?P<deg>\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z]))"
    rf"|\\(?:{_WORDY})\s*\{{(?P<text>[^{{}}]*)\}}"
    rf"|\\(?:{_STYLED})\s*(?:\{{\s*\\?(?P<styled>[A-Za-z]+)\s*\}}|(?=[A-Za-z\\]))"
    r"|\\mathbb\s*\{?(?P<set>[RZNQC])\}?"
    r"|\\(?P<environment>begin|end)\s*\{(?P<env_name>[a-zA-Z]+)\*?\}(?:\s*\{[lcr|\s]*\})?"
    r"|(?P<row>\\\\(?:\[[^\]]{0,20}\])?)"
    r"|\\(?P<command>[A-Za-z]+)"
    r"|\\(?P<escaped>.)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<operator><=|>=|!=|\*\*|==|!!|[-+*/^_=<>|!:;,&'])"
    r"|(?P<bracket>[()\[\]{}])"
    r"|(?P<percent>%)"
    r"|(?P<ellipsis>\.\.\.)"
    r"|(?P<quote>[\"`]+)",
    re.DOTALL,
)
# Words of two or three letters that are no products of unknowns.
_WORDS = "yes no all red one two six ten per day the not men boy odd of at is it as by if we to so"
_WORDS += " am hr are was for dne tie mon tue wed thu fri sat sun jan feb mar apr may jun jul aug"
_WORDS += " sep oct nov dec cat dog car pen box egg cup bag can pie"
_SHORT_WORDS = frozenset(_WORDS.split())
_PREFIX_FUNCTION = re.compile(r"(arcsin|arccos|arctan|sin|cos|tan|ln|log|sqrt)([a-z])")


def tokenize(text: str) -> list[Token]:
    """The tokens of an answer that `clean` has rewritten. Raises Unreadable."""
    tokens: list[Token] = []
    spaced = False
    depth = 0
    position = 0
    # (1,234) is a pair, but (1,000, 2,000) has thousands.
    grouped = ", " in text
    while position < len(text):
        match = _ALL.match(text, position)
        if match is None:
            raise Unreadable(f"unexpected {text[position]!r}")
        kind = match.lastgroup
        position = match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "number" and depth and "," in match[0] and not grouped:
            position = match.start() + match[0].index(",")
            tokens.append(_number(text[match.start() : position], spaced))
        else:
            made = _token(kind, match, spaced)
            tokens += made
            for token in made:
                depth += (token.kind == "open") - (token.kind == "close")
        spaced = False
        if len(tokens) > MAX_TOKENS:
            raise Unreadable("too long")
    return tokens


def _token(kind: str | None, match: re.Match[str], spaced: bool) -> list[Token]:
    text = match[0] if kind is None else match[kind]
    match kind:
        case "number":
            return [_number(text, spaced)]
        case "repeating":
            return [_repeating(text, spaced)]
        case "deg":
            return [Token("deg", "deg", spaced)]
        case "text":
            return _words(text, spaced)
        case "styled":
            return _letters(text, spaced) if text not in _NAMES else [Token("name", text, spaced)]
        case "set":
            return [Token("name", text, spaced)]
        case "env_name":
            return [Token("command", f"{match['environment']} {text}", spaced)]
        case "row":
            return [Token("separator", "row", spaced)]
        case "command":
            return [_command(text, spaced)]
        case "escaped":
            return _escaped(text, spaced)
        case "letters":
            return _letters(text, spaced)
        case "operator":
            return [_operator(text, spaced)]
        case "bracket":
            return [Token("open" if text in "([{" else "close", text, spaced)]
        case "ellipsis":
            return [Token("name", "...", spaced)]
        case "percent":
            return [Token("word", "%", spaced)]
        case _:
            return []


def _number(text: str, spaced: bool) -> Token:
    digits = text.replace(",", "")
    if len(digits) > MAX_DIGITS:
        raise Unreadable("too many digits")
    if digits.isdigit():
        return Token("number", text, spaced, Number(Fraction(int(digits))))
    mantissa, _, exponent = digits.lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_DIGITS:
        raise Unreadable("exponent too large")
    whole, _, fraction = mantissa.partition(".")
    value = Fraction(int(whole + fraction), 10 ** len(fraction))
    if exponent:
        value *= Fraction(10) ** int(exponent)
    significant = len((whole + fraction).lstrip("0")) if fraction else 0
    places = len(fraction) - int(exponent or 0)
    return Token("number", text, spaced, Number(value, significant, places if fraction else 0))


_REPEATED = re.compile(
    r"(\d*)\.(\d*?)(?:\\(?:overline|bar)\s*\{?(\d+)\}?|\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?)"
)


def _repeating(text: str, spaced: bool) -> Token:
    match = _REPEATED.fullmatch(text)
    if match is not None:
        whole, start, block = match[1], match[2], match[3]
        block = block or (match[4] + (match[5] or "") + (match[6] or ""))
    else:
        digits = re.match(r"(\d*)\.(\d+)", text)
        assert digits is not None
        whole, fraction = digits[1], digits[2][:60]
        start, block = _repeated_tail(fraction)
        if not block:
            return _number(digits[0], spaced)
    if len(whole + start + block) > MAX_DIGITS:
        raise Unreadable("too many digits")
    value = Fraction(int(whole + start or "0"), 10 ** len(start))
    value += Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(start))
    return Token("number", text, spaced, Number(value))


def _repeated_tail(fraction: str) -> tuple[str, str]:
    """What comes before the repeated digits of 0.1666..., and those; "" if nothing repeats."""
    for size in range(1, len(fraction) // 2 + 1):
        block = fraction[-size:]
        count = 1
        while fraction[: len(fraction) - size * count].endswith(block):
            count += 1
        # One repetition of a single digit could be chance: 3.1455... is not taken to repeat.
        if count * size >= 3 and count >= 2:
            return fraction[: len(fraction) - size * count], block
    return fraction, ""


def _command(name: str, spaced: bool) -> Token:
    if name in _NAMES:
        return Token("name", _NAMES[name], spaced)
    if name in FUNCTIONS:
        return Token("function", FUNCTIONS[name], spaced)
    if name in _OPERATORS:
        return Token("operator", _OPERATORS[name], spaced)
    if name in _OPENING:
        return Token("open", _OPENING[name], spaced)
    if name in _CLOSING:
        return Token("close", _CLOSING[name], spaced)
    if name in ("dollar", "pounds", "euro"):
        return Token("word", {"pounds": "gbp"}.get(name, name), spaced)
    if name in ("land", "wedge", "lor", "vee"):
        return Token("separator", "and" if name in ("land", "wedge") else "or", spaced)
    if name in ("R", "Z", "N", "Q"):
        return Token("name", name, spaced)
    if name in _DOTS:
        return Token("name", "...", spaced)
    return Token("command", _ALIASES.get(name, name), spaced)


def _escaped(char: str, spaced: bool) -> list[Token]:
    if char in "{}":
        return [Token("open" if char == "{" else "close", f"\\{char}", spaced)]
    if char == "%":
        return [Token("word", "%", spaced)]
    if char == "|":
        return [Token("operator", "|", spaced)]
    if char == "_":
        return [Token("operator", "_", spaced)]
    if char in "#&":
        raise Unreadable(f"unexpected \\{char}")
    return []


def _operator(text: str, spaced: bool) -> Token:
    if text in (",", ";"):
        return Token("separator", text, spaced)
    if text == "&":
        return Token("separator", "&", spaced)
    return Token("operator", {"**": "^", "==": "="}.get(text, text), spaced)


_PLAIN_NUMBER = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def _words(text: str, spaced: bool) -> list[Token]:
    """The content of \\text{...}: a connective, a name of one letter, or words."""
    content = " ".join(text.replace("$", " ").split())
    if not content:
        return []
    if content.lower() in ("and", "or", ",", ";", ", and", ", or"):
        return [Token("separator", content.lower().strip(", ") or ",", spaced)]
    if content in FUNCTIONS:
        return [Token("function", FUNCTIONS[content], spaced)]
    if content == "%":
        return [Token("word", "%", spaced)]
    if _PLAIN_NUMBER.fullmatch(content):
        return [_number(content, spaced)]
    return [Token("word", content, True)]


def _letters(run: str, spaced: bool) -> list[Token]:
    lowered = run.lower()
    if lowered in ("and", "or"):
        return [Token("separator", lowered, spaced)]
    if len(run) == 1:
        return [Token("name", run, spaced)]
    if run in FUNCTIONS or (lowered in FUNCTIONS and len(run) > 2):
        return [Token("function", FUNCTIONS.get(run) or FUNCTIONS[lowered], spaced)]
    if run in _NAMES or lowered in ("pi", "infinity", "inf"):
        return [Token("name", _NAMES.get(run) or _NAMES[lowered], spaced)]
    if lowered in ("sqrt", "cbrt"):
        return [Token("command", lowered, spaced)]
    if lowered == "mod":
        return [Token("operator", "mod", spaced)]
    if lowered in ("in", "union") and spaced:
        return [Token("operator", "in" if lowered == "in" else "cup", spaced)]
    prefix = _PREFIX_FUNCTION.fullmatch(run)
    if prefix is not None:
        head = _letters(prefix[1], spaced)
        return [*head, Token("name", prefix[2])]
    if len(run) > 3 or lowered in _SHORT_WORDS or is_unit(run):
        return [Token("word", run, spaced)]
    return [Token("name", letter, spaced and not i) for i, letter in enumerate(run)]
