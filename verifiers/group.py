"""Group-level verifiers: they see all episodes of a task and add to their rewards."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from palestra.tools.trouble import TimedOut, one_line
from palestra.types import (
    AGENT,
    BadScore,
    Episode,
    Failure,
    Outcome,
    Unscorable,
)
from palestra.verifiers.parts import named_trouble
from palestra.verifiers.run import as_score, call_bounded, check_verifier
from palestra.verifiers.verifier import Verifier, declaration_of, parameters_of

if TYPE_CHECKING:
    from palestra.verifiers.rubric import Part

# What a group verifier may ask for by parameter name.
GROUP_PARAMETERS = ("episodes", "task", "answer")

_TIMEOUT_S = 120.0


def is_group_verifier(verifier: Verifier) -> bool:
    """Whether it asks for `episodes`."""
    return "episodes" in parameters_of(verifier)


def check_group_verifier(verifier: Verifier) -> None:
    """Raise ValueError if `judge_group` could not call this."""

    def without_episodes(**kwargs: Any) -> None: ...

    parameters = parameters_of(verifier)
    del parameters["episodes"]
    without_episodes.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        list(parameters.values())
    )
    without_episodes.__name__ = declaration_of(verifier).name
    check_verifier(without_episodes, GROUP_PARAMETERS)


def group_parts(verifier: Verifier | None) -> tuple[Part, ...]:
    """The parts of an environment's verifier that judge all episodes of a task together."""
    found: tuple[Part, ...] = getattr(verifier, "group_parts", ())
    return found


async def judge_group(parts: Sequence[Part], episodes: Sequence[Episode]) -> tuple[Episode, ...]:
    """All episodes of a task, with what group-level parts add to the rewards of the scored ones.

    A group verifier is a function of `episodes`, those that were scored (also `task`, `answer`),
    that returns for each, in order, a number in its range, a `Score`, or an `Unscorable` for one
    that it cannot judge. Token ids are there, so lengths are those of what was sampled. What it
    adds is part of the last turn's reward, of the episode's and of its score's; the score's value
    stays.

        @verifier(range=(-1, 0), shaping=True)
        def longest(episodes: Sequence[Episode]) -> list[float]:
            lengths = [len(episode.turns) for episode in episodes]
            return [-float(length == max(lengths)) for length in lengths]

    One that raises, takes longer than its `timeout_s` (120 unless declared) or returns something
    else is tried once more and then fails all episodes of the group. What it must not do, then, is
    raise because of what an answer contains.
    """
    scored = [
        i for i, e in enumerate(episodes) if e.outcome is Outcome.SCORED and AGENT in e.scores
    ]
    judged = list(episodes)
    if not scored or not parts:
        return tuple(judged)
    given = [episodes[i] for i in scored]
    verdicts = await asyncio.gather(*(_verdicts(part, given) for part in parts))
    for position, i in enumerate(scored):
        judged[i] = _with_verdicts(episodes[i], parts, [of_part[position] for of_part in verdicts])
    return tuple(judged)


_Verdict = float | Failure | Unscorable


async def _verdicts(part: Part, episodes: Sequence[Episode]) -> list[_Verdict]:
    available = {
        "episodes": tuple(episodes),
        "task": episodes[0].task,
        "answer": episodes[0].task.answer,
    }
    wanted = parameters_of(part.verifier)
    arguments = {name: available[name] for name in GROUP_PARAMETERS if name in wanted}
    timeout_s = declaration_of(part.verifier).timeout_s or _TIMEOUT_S
    trouble: Failure | Unscorable = Failure("verifier", "")
    for _ in range(2):
        try:
            returned = await call_bounded(part.verifier, arguments, timeout_s)
            return _read(part, returned, len(episodes))
        except (Failure, Unscorable) as error:
            trouble = error
        except TimedOut:
            trouble = Failure("verifier", f"no verdict after {timeout_s:g} s")
        except BadScore as error:
            trouble = Failure("verifier", str(error))
        except (Exception, SystemExit) as error:
            trouble = Failure("verifier", one_line(error))
            trouble.__cause__ = error
    return [named_trouble(trouble, part.name)] * len(episodes)


def _read(part: Part, returned: Any, count: int) -> list[_Verdict]:
    values = list(returned)
    if len(values) != count:
        raise Failure("verifier", f"a verdict for each of {count} episodes, got {len(values)}")
    verdicts: list[_Verdict] = []
    for value in values:
        if isinstance(value, Unscorable):
            verdicts.append(named_trouble(value, part.name))
        else:
            score = as_score(value, part.range)
            assert score.reward is not None  # Score sets it
            verdicts.append(score.reward)
    return verdicts


def _with_verdicts(
    episode: Episode, parts: Sequence[Part], verdicts: Sequence[_Verdict]
) -> Episode:
    for kind, outcome in ((Failure, Outcome.FAILED), (Unscorable, Outcome.UNSCORABLE)):
        for verdict in verdicts:
            if isinstance(verdict, kind):
                return replace(
                    episode,
                    outcome=outcome,
                    cause=verdict.cause,
                    detail=str(verdict),
                    scores={},
                    rewards={},
                )
    numbers = [verdict for verdict in verdicts if isinstance(verdict, float)]
    added = math.fsum(part.weight * number for part, number in zip(parts, numbers, strict=True))
    score = episode.scores[AGENT]
    assert score.reward is not None
    rewards = {part.name: number for part, number in zip(parts, numbers, strict=True)}
    *turns, last = episode.turns
    return replace(
        episode,
        turns=(*turns, replace(last, reward=last.reward + added)),
        scores={
            **episode.scores,
            AGENT: replace(score, reward=score.reward + added, parts={**score.parts, **rewards}),
        },
        rewards={**episode.rewards, AGENT: episode.reward + added},
    )
