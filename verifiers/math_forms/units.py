"""Units of measurement: what a phrase like "km/h" or "square feet" stands for."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_PHRASE_CHARS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A factor to base units and the powers of those, e.g. 5/18 and (("length", 1), ("time", -1)).

    A word that is no known unit ("apples") is a base unit of its own.
    """

    factor: Fraction
    powers: tuple[tuple[str, int], ...]


_F = Fraction
_PREFIXED = {"m": "length", "g": "mass", "L": "volume", "l": "volume", "s": "time"}
_PREFIXED |= {"J": "energy", "W": "power", "N": "force", "Hz": "frequency", "V": "voltage"}
_PREFIXED |= {"A": "current", "Pa": "pressure", "mol": "amount", "C_": "charge", "Ω_": "ohm"}
_PREFIXES = {"k": _F(1000), "c": _F(1, 100), "m": _F(1, 1000), "M": _F(10**6), "G": _F(10**9)}
_PREFIXES |= {"d": _F(1, 10), "n": _F(1, 10**9), "h": _F(100)}
_LONG = {"meter": "m", "metre": "m", "gram": "g", "liter": "L", "litre": "L", "second": "s"}
_LONG |= {"joule": "J", "watt": "W", "newton": "N", "hertz": "Hz", "volt": "V", "ampere": "A"}
_LONG |= {"pascal": "Pa", "mole": "mol"}
_LONG_PREFIXES = {"kilo": "k", "centi": "c", "milli": "m", "mega": "M", "giga": "G", "deci": "d"}
_LONG_PREFIXES |= {"nano": "n", "hecto": "h"}


def _table() -> dict[str, tuple[Fraction, str, int]]:
    table: dict[str, tuple[Fraction, str, int]] = {}
    for short, base in _PREFIXED.items():
        # A litre is a cubic decimetre, so that volumes convert.
        power = 3 if base == "volume" else 1
        scale = {"volume": _F(1, 1000), "mass": _F(1, 1000)}.get(base, _F(1))
        kind = "length" if base == "volume" else base
        table[short] = (scale, kind, power)
        for prefix, factor in _PREFIXES.items():
            table[prefix + short] = (factor * scale, kind, power)
    for long, short in _LONG.items():
        table[long] = table[short]
        for prefix, letter in _LONG_PREFIXES.items():
            table[prefix + long] = table[letter + short]
    inch = _F(254, 10_000)
    for names, factor, kind, power in (
        ("inch in", inch, "length", 1), ("foot feet ft", 12 * inch, "length", 1),
        ("yard yd", 36 * inch, "length", 1), ("mile mi", 63360 * inch, "length", 1),
        ("second sec", _F(1), "time", 1), ("minute min", _F(60), "time", 1),
        ("hour hr h", _F(3600), "time", 1), ("day", _F(86400), "time", 1),
        ("week wk", _F(604800), "time", 1), ("month", _F(1), "month", 1),
        ("year yr", _F(12), "month", 1), ("decade", _F(120), "month", 1),
        ("century", _F(1200), "month", 1),
        ("pound lb", _F(45359237, 10**8), "mass", 1),
        ("ounce oz", _F(45359237, 16 * 10**8), "mass", 1),
        ("ton tonne", _F(1000), "mass", 1),
        ("dollar usd buck", _F(1), "dollar", 1), ("cent", _F(1, 100), "dollar", 1),
        ("penny", _F(1, 100), "dollar", 1), ("euro eur", _F(1), "euro", 1),
        ("gbp", _F(1), "gbp", 1), ("yen", _F(1), "yen", 1), ("rupee rs", _F(1), "rupee", 1),
        ("degree deg", _F(1), "angle", 1), ("radian rad", _F(1), "radian", 1),
        ("gallon gal", 231 * inch**3, "length", 3), ("quart qt", 231 * inch**3 / 4, "length", 3),
        ("pint pt", 231 * inch**3 / 8, "length", 3), ("cup", 231 * inch**3 / 16, "length", 3),
        ("acre", _F(40468564224, 10**7), "length", 2), ("hectare ha", _F(10_000), "length", 2),
        ("dozen", _F(12), "count", 1), ("unit", _F(1), "unit", 1),
    ):  # fmt: skip
        table |= dict.fromkeys(names.split(), (factor, kind, power))
    return table


_UNITS = _table()
_SPEEDS = {"mph": "mile/hour", "kph": "km/hour", "kmph": "km/hour", "kmh": "km/hour"}
_SPEEDS |= {"sqft": "foot^2", "sqm": "m^2", "cc": "cm^3", "mpg": "mile/gallon"}
_TOKEN = re.compile(r"[A-Za-z]+|\^?[-+]?\d+|[/*^%]")
# Words that say nothing about the unit.
_FILLER_WORDS = "of the a an total long wide tall high deep old each all altogether left more only"
_FILLER_WORDS += " about is are was be needed required away exactly and"
_FILLERS = frozenset(_FILLER_WORDS.split())


def is_unit(word: str) -> bool:
    """Whether a word of two letters or more is a known unit of measurement."""
    return len(word) > 1 and (word in _UNITS or _singular(word) in _UNITS or word in _SPEEDS)


@lru_cache(maxsize=2048)
def read_unit(phrase: str) -> Unit:
    """The unit that a phrase names; words that are no known unit count as they stand."""
    for short, long in _SPEEDS.items():
        phrase = re.sub(rf"\b{short}\b", long, phrase)
    powers: Counter[str] = Counter()
    factor, sign, pending = Fraction(1), 1, 1
    last: tuple[Fraction, str, int] | None = None
    for token in _TOKEN.findall(phrase[:MAX_PHRASE_CHARS]):
        lowered = token.lower()
        if token == "/" or lowered == "per":
            sign, last = -1, None
        elif lowered in ("square", "sq", "cubic", "cu"):
            pending = 2 if lowered.startswith("s") else 3
        elif lowered in ("squared", "cubed") or token.lstrip("^+-").isdigit():
            power = {"squared": 2, "cubed": 3}.get(lowered) or int(token.lstrip("^+")[:3])
            if last is not None and abs(power) <= 6:
                size, kind, own = last
                factor *= size ** (sign * (power - 1))
                powers[kind] += sign * own * (power - 1)
                last = None
        elif lowered == "in" and (powers or token != phrase.strip()):
            continue  # "5 apples in total" has no inches
        elif lowered not in _FILLERS and token not in "*^%":
            last = (
                _UNITS.get(token)
                or _UNITS.get(_singular(lowered))
                or (_F(1), _singular(lowered), 1)
            )
            size, kind, own = last
            factor *= size ** (sign * pending)
            powers[kind] += sign * own * pending
            pending = 1
    return Unit(factor=factor, powers=tuple(sorted((k, n) for k, n in powers.items() if n)))


def same_kind(first: Unit, second: Unit) -> bool:
    """Whether values in these units compare: m and cm do, "red apples" and "apples"."""
    if first.powers == second.powers:
        return True
    one, two = dict(first.powers), dict(second.powers)
    known = {kind for _, kind, _ in _UNITS.values()}
    if (known & one.keys()) or (known & two.keys()):
        return False
    return bool(one) and bool(two) and (one.items() <= two.items() or two.items() <= one.items())


def _singular(word: str) -> str:
    irregular = {"feet": "foot", "inches": "inch", "pennies": "penny", "people": "person"}
    irregular |= {"children": "child", "men": "man", "women": "woman", "centuries": "century"}
    if word in irregular:
        return irregular[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
