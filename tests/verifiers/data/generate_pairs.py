"""Make labelled pairs (reference, reply) with sympy: equivalent rewritings and near misses.

    python tests/verifiers/data/generate_pairs.py OUT.jsonl [--seed 0] [--count 2000]

The pairs depend on the seed and on sympy's version only. Every label is checked against exact
objects (numbers, sets, ordered elements) or at high-precision sample points, never by a verifier.
The form of a line and the policies are in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import sympy as sp

SHARE_EQUAL = 0.55
X, Y = sp.symbols("x y")
# Positive, so that every root and logarithm below is real, and far from special values.
SAMPLES = ((Fraction(71, 53), Fraction(29, 17)), (Fraction(223, 71), Fraction(41, 97)))
NICE_ANGLES = (sp.pi / 6, sp.pi / 4, sp.pi / 3, 2 * sp.pi / 3, 3 * sp.pi / 4, 5 * sp.pi / 6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two texts; LaTeX ones may go between dollar signs or into a box."""

    gold: str
    answer: str
    latex: bool = True


# A family makes a pair with the wanted label, or None where this draw gives none.
Family = Callable[[Random, bool], Pair | None]


def agree(first: Any, second: Any) -> bool | None:
    """Whether two expressions have the same values; None if too close to call."""
    worst = 0.0
    for x, y in SAMPLES:
        point = {X: sp.Rational(x.numerator, x.denominator)}
        point[Y] = sp.Rational(y.numerator, y.denominator)
        one, two = (complex(sp.N(sp.sympify(e).subs(point), 40)) for e in (first, second))
        worst = max(worst, abs(one - two) / (1 + abs(one)))
    if worst < 1e-13:
        return True
    return False if worst > 1e-5 else None


def nudge(rng: Random, expression: Any) -> Any:
    """The expression with one sign, coefficient, exponent or constant changed."""
    moves: list[Callable[[], Any]] = [lambda: -expression, lambda: expression + 1]
    if expression.is_Add:
        term = rng.choice(expression.args)
        moves += [lambda: expression - 2 * term, lambda: expression + term] * 2
        powers = [t for t in expression.args if t.has(X)]
        moves += [lambda: expression + rng.choice(powers) * (X - 1)] if powers else []
    else:
        moves += [lambda: expression * 2, lambda: expression / 3]
    return rng.choice(moves)()


def plain(expression: Any) -> str:
    """As typed on a keyboard: powers with ^, natural logarithm ln, imaginary unit i."""
    text: str = sp.sstr(expression).replace("**", "^").replace("log(", "ln(")
    return re.sub(r"\bI\b", "i", text)


def tex(expression: Any) -> str:
    """sympy's LaTeX with ln for the natural logarithm."""
    text: str = sp.latex(expression, ln_notation=True)
    return text


def printed(rng: Random, forms: tuple[Any, Any], wanted: bool) -> Pair | None:
    """The pair of two expressions, in LaTeX or plain text, if the label is beyond doubt."""
    if agree(*forms) is not wanted:
        return None
    latex = rng.random() < 0.7
    gold = (tex if rng.random() < 0.7 else plain)(forms[0])
    return Pair(gold=gold, answer=(tex if latex else plain)(forms[1]), latex=latex)


def rewritten(rng: Random, wanted: bool, forms: list[Any]) -> Pair | None:
    """Two of the equivalent forms, the second one nudged for a near miss."""
    gold, answer = rng.sample(forms, 2)
    return printed(rng, (gold, answer if wanted else nudge(rng, answer)), wanted)


def nonzero(rng: Random, limit: int) -> int:
    return rng.choice([-1, 1]) * rng.randint(1, limit)


def polynomial(rng: Random, wanted: bool) -> Pair | None:
    factors = [nonzero(rng, 3) * X + nonzero(rng, 7) for _ in range(rng.randint(2, 3))]
    product = sp.prod(factors) if rng.random() < 0.7 else factors[0] * (factors[1] + Y)
    return rewritten(rng, wanted, [product, sp.expand(product), sp.horner(sp.expand(product), X)])


def rational(rng: Random, wanted: bool) -> Pair | None:
    first, second = rng.sample([i for i in range(-6, 7) if i], 2)
    total = sp.Integer(nonzero(rng, 5)) / (X + first) + sp.Integer(nonzero(rng, 5)) / (X + second)
    joined = sp.together(total)
    top, bottom = sp.fraction(joined)
    return rewritten(rng, wanted, [total, sp.expand(top) / bottom, sp.cancel(joined)])


def trig(rng: Random, wanted: bool) -> Pair | None:
    angle, factor = rng.randint(1, 3) * X, nonzero(rng, 5)
    sine, cosine = sp.sin(angle), sp.cos(angle)
    shift = rng.choice(NICE_ANGLES)
    forms = rng.choice(
        [
            [sp.sin(2 * angle), 2 * sine * cosine],
            [sp.cos(2 * angle), 1 - 2 * sine**2, 2 * cosine**2 - 1, cosine**2 - sine**2],
            [sine**2, (1 - sp.cos(2 * angle)) / 2, 1 - cosine**2],
            [sp.sin(angle + shift), sine * sp.cos(shift) + cosine * sp.sin(shift)],
            [sp.tan(angle) ** 2 + 1, 1 / cosine**2],
        ]
    )
    return rewritten(rng, wanted, [factor * form for form in forms])


def root(rng: Random, wanted: bool) -> Pair | None:
    surd = sp.sqrt(rng.choice([2, 3, 5, 6, 7, 10]))
    if rng.random() < 0.5:
        quotient = (rng.randint(1, 6) + nonzero(rng, 4) * surd) / (nonzero(rng, 4) + surd)
        return rewritten(rng, wanted, [quotient, sp.radsimp(quotient)])
    scale = rng.randint(2, 9)
    inside = sp.Mul(scale**2, surd**2)
    answer = scale * surd if wanted else rng.choice([scale**2 * surd, surd, (scale + 1) * surd])
    return printed(rng, (sp.sqrt(inside, evaluate=False), answer), wanted)


def log(rng: Random, wanted: bool) -> Pair | None:
    a, b = rng.sample(range(2, 12), 2)
    k = rng.randint(2, 4)
    forms = rng.choice(
        [
            [sp.log(a) + sp.log(b), sp.log(a * b)],
            [k * sp.log(a), sp.log(a**k)],
            [sp.log(a * X, evaluate=False), sp.log(a) + sp.log(X)],
            [sp.exp(k * X + a), sp.Mul(sp.exp(a), sp.exp(k * X), evaluate=False)],
            # An odd power: the logarithm of an even one has another domain.
            [sp.log(X**3) / 3, sp.log(X)],
        ]
    )
    return rewritten(rng, wanted, forms)


def complex_number(rng: Random, wanted: bool) -> Pair | None:
    one, two = (nonzero(rng, 6) + nonzero(rng, 6) * sp.I for _ in range(2))
    if rng.random() < 0.3:
        size, angle = rng.randint(2, 5), rng.choice(NICE_ANGLES)
        polar = sp.Mul(size, sp.exp(sp.I * angle, evaluate=False), evaluate=False)
        return rewritten(rng, wanted, [polar, sp.expand_complex(size * sp.exp(sp.I * angle))])
    if rng.random() < 0.5:
        return rewritten(rng, wanted, [one / two, sp.expand_complex(one / two)])
    product = sp.Mul(one, two, evaluate=False)
    return rewritten(rng, wanted, [product, sp.expand(one * two)])


def write_number(rng: Random, value: Fraction) -> str:
    """One of the ways to write a rational number exactly."""
    sign, size = "-" if value < 0 else "", abs(value)
    top, bottom = size.numerator, size.denominator
    k = rng.randint(2, 6)
    ways = [f"{sign}\\frac{{{top}}}{{{bottom}}}", f"{sign}{top}/{bottom}"]
    ways += [f"{sign}\\dfrac{{{top * k}}}{{{bottom * k}}}"]
    if bottom == 1:
        grouped = f"{top:,}"
        ways = [f"{sign}{top}", f"{sign}{grouped}", sign + grouped.replace(",", "{,}")]
        ways += [f"{sign}{top}.0", f"{sign}\\frac{{{top * k}}}{{{k}}}"]
    elif top > bottom:
        ways.append(f"{sign}{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}")
        ways.append(f"{sign}{top // bottom} {top % bottom}/{bottom}")
    if bottom > 1 and not 10**6 % bottom:
        decimal = f"{float(size):.6f}".rstrip("0")
        ways += [sign + decimal, sign + decimal + "0"]
        ways += [f"{sign}{float(size * 100):.4f}".rstrip("0").rstrip(".") + "\\%"]
        ways += [f"{sign}{float(size * 1000):.4f}".rstrip("0").rstrip(".") + " \\times 10^{-3}"]
    return rng.choice(ways)


def number(rng: Random, wanted: bool) -> Pair | None:
    value = Fraction(nonzero(rng, 60), rng.choice([2, 3, 4, 5, 7, 8, 9, 11, 20, 25, 40]))
    if rng.random() < 0.35:
        value = Fraction(nonzero(rng, 99999))
    slips = [-value, value + 1, value * 10, value / 10, value * 2, 1 / value]
    other = value if wanted else rng.choice([*slips, value + Fraction(1, 1000)])
    # A percent sign may stand for hundredths or be a unit (README.md): 0.5% and 0.5 is left out.
    if other in (value * 100, value / 100) or (other == value) is not wanted:
        return None
    return Pair(gold=write_number(rng, value), answer=write_number(rng, other))


def integer(rng: Random, wanted: bool) -> Pair | None:
    base, n = rng.randint(2, 9), rng.randint(3, 9)
    k = rng.randint(1, n - 1)
    text, value = rng.choice(
        [
            (f"{base}^{{{n}}}", base**n),
            (f"{n}!", math.factorial(n)),
            (f"\\binom{{{n}}}{{{k}}}", math.comb(n, k)),
            (f"{base} \\cdot {n} + {k}", base * n + k),
            (f"\\frac{{{n}!}}{{{k}!}}", math.factorial(n) // math.factorial(k)),
            (f"\\sqrt{{{base * base * n * n}}}", base * n),
        ]
    )
    other = value if wanted else value + rng.choice([-10, -1, 1, 10, value])
    sides = [text, rng.choice([str(other), f"{other:,}", f"{other}.0", f"+{other}"])]
    rng.shuffle(sides)
    return Pair(gold=sides[0], answer=sides[1])


def elements(rng: Random) -> list[Fraction]:
    """Distinct small rationals, of sizes that no percent sign or separator makes ambiguous."""
    pool = [Fraction(n, d) for d in (1, 2, 3, 4, 5) for n in range(-9, 10) if math.gcd(n, d) == 1]
    return rng.sample(pool, rng.randint(2, 4))


def write_small(rng: Random, value: Fraction) -> str:
    while "%" in (text := write_number(rng, value)) or "10^" in text:
        pass
    return text


def spoil(rng: Random, items: list[Fraction]) -> list[Fraction]:
    """The items with one dropped, added or changed."""
    spot = rng.randrange(len(items))
    fresh = rng.choice([v for v in map(Fraction, range(-12, 13)) if v not in items])
    kept = items[:spot] + items[spot + 1 :]
    return rng.choice([kept, [*items, fresh], [*kept, fresh], [*kept, -items[spot]]])


def finite_set(rng: Random, wanted: bool) -> Pair | None:
    items = elements(rng)
    others = rng.sample(items, len(items)) if wanted else spoil(rng, items)
    if (set(items) == set(others)) is not wanted:
        return None
    gold, answer = (", ".join(write_small(rng, v) for v in values) for values in (items, others))
    if rng.random() < 0.3:
        answer = " \\text{ or } ".join(f"x = {write_small(rng, v)}" for v in others)
        return Pair(gold=f"\\{{{gold}\\}}", answer=answer)
    return Pair(gold=f"\\{{{gold}\\}}", answer=f"\\left\\{{{answer}\\right\\}}")


def ordered_tuple(rng: Random, wanted: bool) -> Pair | None:
    items = elements(rng)
    others = list(items)
    if not wanted:
        others = items[::-1] if rng.random() < 0.5 else spoil(rng, items)
    if (items == others) is not wanted:
        return None
    gold, answer = (", ".join(write_small(rng, v) for v in values) for values in (items, others))
    return Pair(gold=f"({gold})", answer=rng.choice([f"({answer})", f"\\left({answer}\\right)"]))


def interval(rng: Random, wanted: bool) -> Pair | None:
    low, high = sorted(rng.sample(range(-9, 10), 2))
    left, right = rng.random() < 0.5, rng.random() < 0.5
    ray = rng.choice(["none", "none", "low", "high"])
    ends = (low, high, left, right)
    other = ends
    if not wanted:
        flipped = (low, high, not left, right) if ray != "low" else (low, high, left, not right)
        moved = (low - 1, high, left, right) if ray != "low" else (low, high + 1, left, right)
        other = rng.choice([flipped, moved])
    texts = []
    for a, b, closed_left, closed_right in (ends, other):
        start = "(-\\infty" if ray == "low" else f"{'[' if closed_left else '('}{a}"
        stop = "\\infty)" if ray == "high" else f"{b}{']' if closed_right else ')'}"
        below = "" if ray == "low" else f"{a} \\le " if closed_left else f"{a} < "
        above = "" if ray == "high" else f" \\le {b}" if closed_right else f" < {b}"
        chain = f"{below}x{above}"
        texts.append(rng.choice([f"{start}, {stop}", chain, f"x \\in {start}, {stop}"]))
    return Pair(gold=texts[0], answer=texts[1])


def matrix(rng: Random, wanted: bool) -> Pair | None:
    rows, columns = rng.choice([(2, 2), (2, 3), (3, 1), (3, 3)])
    cells = [[rng.choice(elements(rng)) for _ in range(columns)] for _ in range(rows)]
    others = [list(row) for row in cells]
    if not wanted and rng.random() < 0.4:
        others = [list(column) for column in zip(*cells, strict=True)]
    elif not wanted:
        others[rng.randrange(rows)][rng.randrange(columns)] += nonzero(rng, 2)
    if (cells == others) is not wanted:
        return None
    texts = []
    for grid in (cells, others):
        name = rng.choice(["pmatrix", "bmatrix"])
        body = " \\\\ ".join(" & ".join(write_small(rng, v) for v in row) for row in grid)
        texts.append(f"\\begin{{{name}}} {body} \\end{{{name}}}")
    return Pair(gold=texts[0], answer=texts[1])


def equation(rng: Random, wanted: bool) -> Pair | None:
    a, b, c, k = nonzero(rng, 6), nonzero(rng, 6), rng.randint(1, 9), rng.choice([-2, -1, 2, 3, 5])
    if rng.random() < 0.5:
        line = a * X + b * Y
        forms = [(line - c, 0), (line, c), (k * a * X, k * (c - b * Y)), (Y, (c - a * X) / b)]
    else:
        circle = (X - a) ** 2 + (Y - b) ** 2
        moved = sp.expand(circle - c**2)
        forms = [(circle, c**2), (moved, 0), (k * moved, 0)]
    (left, right), (other_left, other_right) = rng.sample(forms, 2)
    if not wanted:
        other_right += nonzero(rng, 3) if rng.random() < 0.5 else nonzero(rng, 2) * X
    # Two curves are one if the ratio of their equations is a constant.
    ratio = sp.cancel((other_left - other_right) / (left - right))
    if ratio.is_number is not wanted:
        return None
    gold, answer = f"{tex(left)} = {tex(sp.sympify(right))}", (other_left, sp.sympify(other_right))
    latex = rng.random() < 0.7
    text = " = ".join((tex if latex else plain)(side) for side in answer)
    return Pair(gold=gold, answer=text, latex=latex)


def plus_minus(rng: Random, wanted: bool) -> Pair | None:
    middle, root = nonzero(rng, 9), rng.choice([2, 3, 5, 6, 7, 10, 11])
    gold = f"{middle} \\pm \\sqrt{{{root}}}"
    roots = [f"{middle} - \\sqrt{{{root}}}", f"{middle} + \\sqrt{{{root}}}"]
    if not wanted:
        missed = [f"{-middle} - \\sqrt{{{root}}}", f"{-middle} + \\sqrt{{{root}}}"]
        roots = rng.choice([roots[:1], roots[1:], missed, [roots[0], missed[1]]])
    return Pair(gold=gold, answer=rng.choice([", ", " \\text{ or } "]).join(roots))


FAMILIES: tuple[Family, ...] = (polynomial, rational, trig, root, log, complex_number)
FAMILIES += (number, integer, finite_set, ordered_tuple, interval, matrix, equation, plus_minus)


def reply(rng: Random, pair: Pair) -> str:
    """The answer as a model gives it: bare, in a box, or in a sentence."""
    text = pair.answer
    inline = f"${text}$" if pair.latex else text
    return rng.choice(
        [
            text,
            inline,
            f"\\boxed{{{text}}}",
            f"The answer is {inline}.",
            f"Simplifying, we get the final answer.\n\n**Answer:** {inline}",
            f"Therefore,\n\\[\n\\boxed{{{text}}}\n\\]",
            f"After a check, the result is $\\boxed{{{text}}}$.",
        ]
    )


def generate(seed: int, count: int) -> list[dict[str, object]]:
    """`count` distinct pairs, the families in turn."""
    rng = Random(seed)
    rows: list[dict[str, object]] = []
    seen: set[tuple[str, str]] = set()
    while len(rows) < count:
        family = FAMILIES[len(rows) % len(FAMILIES)]
        wanted = rng.random() < SHARE_EQUAL
        pair = family(rng, wanted)
        while pair is None or pair.gold == pair.answer or (pair.gold, pair.answer) in seen:
            pair = family(rng, wanted)
        seen.add((pair.gold, pair.answer))
        texts = {
            "id": f"generated-{len(rows) + 1:04}",
            "gold": pair.gold,
            "answer": reply(rng, pair),
        }
        rows.append(texts | {"equal": wanted, "kind": family.__name__, "source": "generated"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="labelled pairs for the math verifier")
    parser.add_argument("out", type=Path, help="the JSON lines to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    rows = generate(options.seed, options.count)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    options.out.write_text("".join(lines), encoding="utf-8")
    counts = Counter((str(row["kind"]), bool(row["equal"])) for row in rows)
    for kind in dict.fromkeys(kind for kind, _ in counts):
        print(f"{kind:14} equal {counts[kind, True]:4}  unequal {counts[kind, False]:4}")
    equal = sum(count for (_, label), count in counts.items() if label)
    print(f"{'all':14} equal {equal:4}  unequal {len(rows) - equal:4}")


if __name__ == "__main__":
    main()
