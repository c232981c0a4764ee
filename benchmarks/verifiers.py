"""The math verifier beside math-verify: answers per second, errors on labels, hostile input.

Rates: GSM8K references with replies as a model writes them, and MATH-style symbolic answers
(tests/verifiers/data/generate_pairs.py); both judge the same pairs on the same core in turns, with
empty caches, and the best pass of each counts. Errors: the labelled pairs and 2,000 generated ones;
a reference that is called unscorable counts as wrong. For errors, math-verify gets a reply that it
cannot read once more between dollars. Hostile: answers that should hang, crash or bloat a verifier.
Every disagreement with math-verify is listed in results/verifiers_disagreements.md (not by
--quick, which compares every third pair).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import sympy
from rich.console import Console
from rich.table import Table

from palestra.types import Unscorable
from palestra.verifiers.math import clear_caches, math
from palestra.verifiers.math_forms.workers import close_workers

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "verifiers.json"
DISAGREEMENTS = HERE / "results" / "verifiers_disagreements.md"
DATA = HERE.parent / "tests" / "verifiers" / "data"
PEER = HERE.parent / ".venv-peers" / "math-verify"
PEER_PACKAGES = ("math-verify==0.9.0", "latex2sympy2_extended==1.11.0")
# Of the 2,000 pairs of seed 0, by tests/verifiers/data/README.md; they depend on sympy's version.
PAIRS_SHA256 = {"1.14.0": "966c622b3f68458f1c1ff91a7c57afd41686c59a4ac1d4b36049ff65a3db3df4"}
SYMBOLIC = {"polynomial", "rational", "trig", "root", "log", "complex_number", "finite_set"}
SYMBOLIC |= {"ordered_tuple", "interval", "matrix", "equation", "plus_minus"}
CORE = max(os.sched_getaffinity(0))

Row = dict[str, Any]
Verdict = bool | None


def judge(row: Row) -> Verdict:
    """The verdict on a pair; None if the reference is called unscorable."""
    try:
        return math(row["answer"], row["gold"]).value == 1.0
    except Unscorable:
        return None


def ask_peer(rows: list[Row], *, help_it: bool = False) -> Row:
    """math-verify's verdicts, and the seconds that they took."""
    task = {"pairs": [[row["gold"], row["answer"]] for row in rows], "help": help_it}
    script = str(HERE / "peers" / "verifiers_math_verify.py")
    done = subprocess.run(
        [str(PEER / "bin" / "python"), script],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {CORE}),
    )
    answer: Row = json.loads(done.stdout)
    return answer


def install_peer() -> None:
    if not (PEER / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
        pip = [str(PEER / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *PEER_PACKAGES], check=True)


def labelled_pairs() -> list[Row]:
    """The hand-checked pairs and the 2,000 generated ones, whose digest is checked."""
    rows = [json.loads(line) for line in (DATA / "math_pairs.jsonl").read_text().splitlines()]
    generated = generate(seed=0, count=2000)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in generated)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    if digest != PAIRS_SHA256.get(sympy.__version__, digest):
        raise SystemExit(f"the generated pairs have changed: SHA-256 {digest}")
    return rows + generated


def generate(seed: int, count: int) -> list[Row]:
    spec = importlib.util.spec_from_file_location("generate_pairs", DATA / "generate_pairs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate_pairs"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    rows: list[Row] = module.generate(seed, count)
    return rows


def gsm8k_pairs(folder: Path, count: int) -> list[Row]:
    """References with the solution's text as the reply, three in five right, marked variously."""
    rng = Random(0)
    lines = (folder / "test.jsonl").read_text().splitlines()[:count]
    rows = []
    for line in lines:
        solution, gold = json.loads(line)["answer"].rsplit("####", 1)
        gold = gold.strip()
        value = int(gold.replace(",", "")) + (0 if rng.random() < 0.6 else rng.randint(1, 9))
        shown = rng.choice([str(value), f"{value:,}"])
        end = rng.choice(
            [
                f"So the final answer is $\\boxed{{{shown}}}$.",
                f"#### {shown}",
                f"The answer is {shown}.",
                f"The answer is ${shown}.",
                f"**Answer:** {shown}",
                f"\\[ \\boxed{{{shown}}} \\]",
            ]
        )
        rows.append({"gold": gold, "answer": f"{solution}\n{end}"})
    return rows


def measure_rate(rows: list[Row], passes: int) -> tuple[float, float]:
    """Answers per second of palestra and of math-verify, on one core, in turns."""
    ours: list[float] = []
    theirs: list[float] = []
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORE})
    for row in rows[:50]:
        judge(row)
    for _ in range(passes):
        clear_caches()
        start = time.perf_counter()
        for row in rows:
            judge(row)
        ours.append(time.perf_counter() - start)
        theirs.append(ask_peer(rows)["seconds"])
    os.sched_setaffinity(0, before)
    return len(rows) / min(ours), len(rows) / min(theirs)


def errors(rows: list[Row], verdicts: list[Verdict]) -> dict[str, float]:
    """Shares of errors; a reference that is called unscorable counts as wrong."""
    pairs = [(row["equal"], verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    equal = [verdict for label, verdict in pairs if label]
    unequal = [verdict for label, verdict in pairs if not label]
    return {
        "accuracy": sum(label == verdict for label, verdict in pairs) / len(pairs),
        "false_positive": sum(verdict is True for verdict in unequal) / len(unequal),
        "false_negative": sum(verdict is not True for verdict in equal) / len(equal),
        "unscorable": float(sum(verdict is None for _, verdict in pairs)),
    }


def list_disagreements(rows: list[Row], ours: list[Verdict], theirs: list[Verdict]) -> int:
    """Write the pairs on which the two differ, those where palestra is wrong first."""
    different = [
        (mine == row["equal"], row, mine, peer)
        for row, mine, peer in zip(rows, ours, theirs, strict=True)
        if mine != peer
    ]
    different.sort(key=lambda entry: (entry[0], entry[1]["id"]))
    text = [
        "# Where palestra and math-verify disagree",
        "",
        f"{len(different)} of {len(rows)} labelled pairs. Written by benchmarks/verifiers.py.",
        "",
        "| pair | kind | label | palestra | math-verify | reference | reply |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {True: "equal", False: "unequal", None: "unscorable"}
    for _, row, mine, peer in different:
        shown = [json.dumps(row[key], ensure_ascii=False)[1:-1] for key in ("gold", "answer")]
        cells = [f"`` {cell[-160:].replace('|', '¦')} ``" for cell in shown]
        text.append(
            f"| {row['id']} | {row['kind']} | {names[row['equal']]} | {names[mine]} "
            f"| {names[peer]} | {cells[0]} | {cells[1]} |"
        )
    DISAGREEMENTS.write_text("\n".join(text) + "\n")
    return len(different)


def hostile_answer(rng: Random) -> str:
    """An answer that should hang, crash or bloat a verifier."""
    n = rng.choice([5, 40, 300, 3_000])
    size = rng.choice([10, 1_000, 10**6, 10**12])
    mega = 1_000_000
    match rng.randrange(8):
        case 0:  # towers of powers and other huge numbers
            base = "9^{" * n + "9" + "}" * n
            forms = [
                base,
                "^".join("9" * n),
                f"{size}!",
                f"({size}!)!",
                f"2^{{{size}}}",
                f"1e{size}",
            ]
            forms += [f"\\binom{{{size}}}{{{size // 2}}}", f"\\sin({size}!)", f"\\tanh {size}"]
            answer = rng.choice(forms)
        case 1:  # nesting
            opener, closer = rng.choice(
                [
                    ("(", ")"),
                    ("[", "]"),
                    ("\\sqrt{", "}"),
                    ("\\frac{1}{", "}"),
                    ("|", "|"),
                    ("-", ""),
                ]
            )
            depth = rng.choice([30, 41, 1_000, 100_000])
            answer = opener * depth + "x" + closer * depth
        case 2:  # bombs for regular expressions and parsers
            part = rng.choice(
                ["1,", "x", "=1", "1=1", "-", "1.", "\\frac12", "1 \\pm ", "a ", "5!"]
            )
            part = rng.choice(
                [part, "\\{", "(0,1)\\cup", "$1$ or ", "1:", "\\sin ", "||", "x<", "%"]
            )
            answer = part * n + "1"
        case 3:  # megabytes
            part = rng.choice(["9", "(", "\\boxed{", "\\boxed{1}", "a ", "$", "answer is ", "\n"])
            part = rng.choice(
                [part, "<think>", "1 ", "\\frac", " ", "####", "**", "x^", "```", "{"]
            )
            answer = part * (mega // len(part))
        case 4:  # control characters, invisible ones and marks of direction
            odd = [*range(32), 127, 0x200E, 0x200F, 0x202E, 0x2066, 0xFEFF, 0xAD, 0x300, 0xD7FF]
            answer = "".join(
                rng.choice([chr(rng.choice(odd)), rng.choice("42x+\\{}")]) for _ in range(n)
            )
        case 5:  # long sums
            forms = [
                "+".join(f"x^{{{i}}}" for i in range(n)),
                ",".join(f"\\sqrt{{{i}}}" for i in range(n)),
            ]
            forms += [
                "*".join(f"(x+{i})" for i in range(n)),
                "+".join(f"\\sin {i}x" for i in range(n)),
            ]
            answer = rng.choice(forms)
        case 6:  # what only sympy can compute, or could not
            forms = [f"\\sum_{{k=1}}^{{{size}}} \\frac{{1}}{{k^2}}", f"\\int_0^1 x^{{{size}}} dx"]
            forms += [
                f"\\prod_{{k=1}}^{{{size}}} k",
                "\\int_0^\\infty e^{-x^x} dx",
                "\\int " * n + "x",
            ]
            answer = rng.choice([*forms, "\\lim_{x \\to 0} \\frac{\\sin x}{x}"])
        case _:  # grammar soup
            parts = "1 2 x y + - * / ^ { } ( ) \\frac \\sqrt \\sin = < , ! | \\pi i e _ \\cup % $"
            parts += " \\pm \\{ \\} ^\\circ \\text{cm} \\le \\infty : \\binom \\ln & \\\\ k"
            parts += " \\begin{pmatrix} \\in"
            answer = "".join(rng.choice(parts.split()) for _ in range(min(n, 60)))
    wraps = ["{}", "{}", "\\boxed{{{}}}", "The answer is {}.", "#### {}", "<answer>{}</answer>"]
    return rng.choice(wraps).format(answer)


HOSTILE_REFERENCES = [
    "42",
    "\\frac{1}{2}",
    "x^2+1",
    "\\sqrt{2}",
    "(1,2)",
    "\\{1,2,3\\}",
    "x>3",
    "B",
]
HOSTILE_REFERENCES += [
    "\\text{yes}",
    "5 \\text{ cm}",
    "\\sin x",
    "\\int_0^1 x^2 dx",
    "y=2x+1",
    "1:2",
]
HOSTILE_REFERENCES += ["3 \\pm \\sqrt{2}", "\\frac{\\pi}{4}+k\\pi, k \\in \\mathbb{Z}", "50\\%"]
HOSTILE_REFERENCES += ["[1,2)\\cup(3,4]"]


def measure_hostile(count: int) -> dict[str, float]:
    """Times, growth of memory and processes left behind over hostile answers; none may raise."""
    rng = Random(0)
    times = []
    grown_from = 0.0
    math("1/3", "\\int_0^1 x^2 dx")  # starts a worker
    for i in range(count):
        answer, gold = hostile_answer(rng), rng.choice(HOSTILE_REFERENCES)
        start = time.perf_counter()
        math(answer, gold)
        times.append(time.perf_counter() - start)
        if i == count // 2:
            grown_from = resident_mb()
    growth = resident_mb() - grown_from
    close_workers()
    times.sort()
    return {
        "hostile_p99_s": times[int(len(times) * 0.99)],
        "hostile_max_s": times[-1],
        "hostile_second_half_growth_mb": growth,
        "hostile_leaked_processes": float(len(children())),
    }


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def concurrent_differences(rows: list[Row]) -> int:
    """On how many of 1,000 pairs threads or asyncio disagree with a serial run."""
    rows = rows[:: max(1, len(rows) // 1000)][:1000]
    runs = []
    clear_caches()
    runs.append([judge(row) for row in rows])
    clear_caches()
    with ThreadPoolExecutor(32) as pool:
        runs.append(list(pool.map(judge, rows)))
    clear_caches()

    async def gather() -> list[Verdict]:
        return list(await asyncio.gather(*[asyncio.to_thread(judge, row) for row in rows]))

    runs.append(asyncio.run(gather()))
    return sum(len({*verdicts}) > 1 for verdicts in zip(*runs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer answers, about a minute")
    parser.add_argument("--gsm8k", type=Path, default=HERE.parent / ".." / "shared/data/gsm8k")
    options = parser.parse_args()
    install_peer()
    passes, rate_count = (1, 300) if options.quick else (3, 1_000)
    gsm8k = gsm8k_pairs(options.gsm8k, rate_count)
    symbolic = [row for row in generate(seed=7, count=rate_count) if row["kind"] in SYMBOLIC]
    labelled = labelled_pairs()
    compared = labelled[:: 3 if options.quick else 1]

    figures: dict[str, float] = {}
    for name, rows in (("gsm8k_per_s", gsm8k), ("math_per_s", symbolic)):
        ours, theirs = measure_rate(rows, passes)
        figures |= {f"palestra.{name}": ours, f"math_verify.{name}": theirs}
        figures[f"{name.removesuffix('_per_s')}_times_math_verify"] = ours / theirs
    clear_caches()
    verdicts = [judge(row) for row in labelled]
    peer_verdicts = ask_peer(compared, help_it=True)["verdicts"]
    figures |= {f"palestra.{name}": share for name, share in errors(labelled, verdicts).items()}
    peer_errors = errors(compared, peer_verdicts)
    figures |= {f"math_verify.{name}": share for name, share in peer_errors.items()}
    if not options.quick:
        figures["disagreements"] = list_disagreements(compared, verdicts, peer_verdicts)
        unseen = [row for seed in (1, 2, 3) for row in generate(seed, 2000)]
        unseen_verdicts = [judge(row) for row in unseen]
        figures["palestra.unseen_accuracy"] = errors(unseen, unseen_verdicts)["accuracy"]
    figures["palestra.concurrent_differences"] = concurrent_differences(labelled)
    hostile = measure_hostile(1_000 if options.quick else 10_000)
    figures |= {f"palestra.{name}": value for name, value in hostile.items()}

    table = Table("what", "palestra", "math-verify")
    for key, value in figures.items():
        if not key.startswith("math_verify."):
            peer = figures.get(key.replace("palestra.", "math_verify."))
            shown = f"{peer:.4g}" if key.startswith("palestra.") and peer is not None else ""
            table.add_row(key.removeprefix("palestra."), f"{value:.4g}", shown)
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({k: round(v, 6) for k, v in figures.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
