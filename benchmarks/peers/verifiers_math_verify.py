"""math-verify on pairs from standard input: the verdicts, and how long they took.

Runs in an environment of its own. Input and output are JSON: {"pairs": [[gold, reply], ...],
"help": bool} gives {"verdicts": [true, false, null, ...], "seconds": ...}; null where it raised.
With `help`, a reply in which it finds no answer is given once more between dollars, as it only
reads formulas that are marked as such.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from math_verify import parse, verify


def judge(gold: str, reply: str, *, help_it: bool = False) -> bool | None:
    # Its README: references are LaTeX between dollars, replies are given as they are.
    try:
        expected = parse(gold if "$" in gold else f"${gold}$")
        given = parse(reply)
        if help_it and not given:
            given = parse(f"${reply}$")
        return bool(verify(expected, given))
    except Exception:
        return None


def main() -> None:
    logging.disable(logging.CRITICAL)
    task = json.load(sys.stdin)
    judge("1", "1")  # imports and compiles
    start = time.perf_counter()
    verdicts = [judge(gold, reply, help_it=task["help"]) for gold, reply in task["pairs"]]
    seconds = time.perf_counter() - start
    json.dump({"verdicts": verdicts, "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main()
