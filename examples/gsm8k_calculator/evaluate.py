"""How many test problems a model solves, with and without the tool, and how its calls fare."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from palestra.rollout.recorder import read_episodes
from palestra.trainer.config import RLConfig, load_config
from palestra.trainer.session import Session
from palestra.types import Episode

CONDITIONS = {"with the tool": True, "without": False}

_MARKED = re.compile(r"####\s*\$?\s*(-?[\d,]*\.?\d+)")


def evaluate(config: RLConfig, problems: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Play the first test problems greedily in both conditions; episodes go into `folder`."""
    session = Session.open(config)
    results = {}
    try:
        for condition, tool in CONDITIONS.items():
            args = {"data": config.env_args["data"], "tool": tool}
            changes = {"env_args": args, "eval_split": "test", "eval_tasks": problems}
            path = folder / f"{condition.replace(' ', '_')}.jsonl"
            path.unlink(missing_ok=True)  # of an evaluation that was interrupted
            started = time.perf_counter()
            evaluation = asyncio.run(
                session.evaluate(config.model_copy(update=changes), seed=0, record_to=path)
            )
            results[condition] = {
                "success": evaluation.mean,
                "low": evaluation.low,
                "high": evaluation.high,
                "problems": evaluation.n,
                "masked": dict(evaluation.masked),
                "turns": evaluation.mean_turns,
                "tokens": evaluation.mean_tokens,
                "stop_reasons": dict(evaluation.stop_reasons),
                **describe_calls(read_episodes(path)),
                "seconds": time.perf_counter() - started,
            }
    finally:
        session.close()
    return results


def describe_calls(episodes: Iterable[Episode]) -> dict[str, Any]:
    """Calls, their errors by kind, and answers that were lost.

    A valid call is whole, names the tool and fits its schema; one that was answered also has a
    result (`1,000 * 2` and `5 / 0` have none). Lost is an answer that stands behind the last ####
    of an episode and is right, but was not scored as such.
    """
    calls, lost = 0, 0
    errors: Counter[str] = Counter()
    for episode in episodes:
        calls += sum(len(turn.tool_results) for turn in episode.turns)
        errors.update(episode.tool_errors())
        lost += is_lost(episode)
    answered = calls - errors.total()
    return {
        "calls": calls,
        "valid_calls": answered + errors["tool_error"],
        "answered_calls": answered,
        "call_errors": dict(errors),
        "lost": lost,
    }


def is_lost(episode: Episode) -> bool:
    """Whether the episode gives the right answer behind #### and still has no full score."""
    if episode.score is None or episode.score.value == 1.0:
        return False
    text = "\n".join(str(turn.message.get("content") or "") for turn in episode.turns)
    marked = _MARKED.findall(text)
    return bool(marked) and _number(marked[-1]) == _number(str(episode.task.answer))


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def main() -> None:
    """Evaluate one model with the limits and the engine of an RL configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="e.g. cpu/rl.toml")
    parser.add_argument("--problems", type=int, required=True, help="the first so many of test")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and episodes")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()
    given.out.mkdir(parents=True, exist_ok=True)
    config = load_config(RLConfig, given.config, [*given.overrides, f"out={given.out}"])
    results = evaluate(config, given.problems, given.out)
    partial = given.out / ".results.partial"
    partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    partial.rename(given.out / "results.json")  # where it exists, the evaluation is done


if __name__ == "__main__":
    main()
