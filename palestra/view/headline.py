"""The answer first: did held-out success rise, and can the figures be trusted?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palestra.view.masked import Masked, group_size, masked_episodes
from palestra.view.run_files import Row, RunFiles, finite
from palestra.view.visible import visible


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A success rate and its 95% interval."""

    label: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A figure beside the headline, as it is printed; `alarm` says that it needs attention."""

    label: str
    value: str
    note: str = ""
    alarm: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    env_id: str
    run: str
    finished: bool
    sentence: str
    measures: list[Measure] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)


def headline(run: RunFiles) -> Headline:
    """What stands at the top of the report."""
    summary = run.summary or {}
    rl_rows = run.metrics.get("rl", [])
    measures = _summary_measures(summary) or _measures_so_far(rl_rows)
    masked = masked_episodes(rl_rows, group_size(run.config))
    return Headline(
        env_id=_env_id(run),
        run=run.name,
        finished=run.summary is not None,
        sentence=_sentence(measures),
        measures=measures,
        facts=_facts(run, masked),
        alarms=_alarms(masked, run.metrics),
    )


def _env_id(run: RunFiles) -> str:
    for table in (run.summary or {}, run.config, *run.config.values()):
        if isinstance(table, Mapping):
            for key in ("env_id", "env"):
                if isinstance(name := table.get(key), str):
                    return visible(name, 80)
    return run.name


def _summary_measures(summary: Mapping[str, Any]) -> list[Measure]:
    labels = {"heldout_before": "before RL", "heldout_after": "after RL"}
    return [
        Measure(
            label=label,
            value=value,
            low=finite(summary.get(f"{key}_low")),
            high=finite(summary.get(f"{key}_high")),
        )
        for key, label in labels.items()
        if (value := finite(summary.get(key))) is not None
    ]


def _measures_so_far(rows: Sequence[Row]) -> list[Measure]:
    """The first and the latest evaluation of a run that has no summary yet."""
    evaluations = [row for row in rows if finite(row.get("heldout")) is not None]
    return [
        Measure(
            label=f"at step {row['step']:,g}",
            value=finite(row["heldout"]) or 0.0,
            low=finite(row.get("heldout_low")),
            high=finite(row.get("heldout_high")),
        )
        for row in (evaluations if len(evaluations) < 2 else [evaluations[0], evaluations[-1]])
    ]


def _sentence(measures: Sequence[Measure]) -> str:
    if not measures:
        return "Held-out success has not been measured yet."
    if len(measures) == 1:
        return f"Held-out success is {_percent(measures[0].value)} {measures[0].label}."
    before, after = measures
    figures = f"from {_percent(before.value)} to {_percent(after.value)}"
    if None not in (before.low, before.high, after.low, after.high):
        assert before.low is not None and before.high is not None
        assert after.low is not None and after.high is not None
        if before.low <= after.high and after.low <= before.high:
            return f"Held-out success went {figures}; the intervals overlap."
    verb = "rose" if after.value > before.value else "fell"
    if after.value == before.value:
        verb = "went"
    return f"Held-out success {verb} {figures}."


def _facts(run: RunFiles, masked: Masked) -> list[Fact]:
    summary = run.summary or {}
    facts: list[Fact] = []

    def add(label: str, key: str, unit: str = "", note: str = "") -> None:
        if (number := finite(summary.get(key))) is not None:
            facts.append(Fact(label=label, value=f"{_count(number)}{unit}", note=note))

    add("held-out tasks", "heldout_n")
    if (wall_s := finite(summary.get("wall_s"))) is not None:
        facts.append(Fact(label="wall time", value=_duration(wall_s)))
    add("peak memory", "peak_memory_mb", " MB")
    facts.append(_masked_fact(masked))
    if (gain := finite(summary.get("control_gain"))) is not None:
        points = f"{gain * 100:+.1f} points"
        facts.append(Fact(label="control gain", value=points, note="shuffled rewards"))
    elif "control_gain" in summary:
        facts.append(Fact(label="control", value="not run", note="shuffled rewards"))
    add("parameters", "model_parameters")
    for stage, label in (("sft", "SFT steps"), ("rl", "RL steps")):
        steps = finite(summary.get(f"{stage}_steps"))
        if steps is None and (rows := run.metrics.get(stage)):
            steps = finite(rows[-1]["step"])
        if steps is not None:
            facts.append(Fact(label=label, value=_count(steps)))
    if (seed := finite(summary.get("seed"))) is not None:
        facts.append(Fact(label="seed", value=f"{seed:.0f}"))
    return facts


def _masked_fact(masked: Masked) -> Fact:
    if masked.share is None:
        return Fact(label="masked episodes", value=_count(masked.masked), alarm=masked.alarming)
    return Fact(
        label="masked episodes",
        value=_small_percent(masked.share),
        note=f"{_count(masked.masked)} of {_count(masked.episodes or 0.0)}",
        alarm=masked.alarming,
    )


def _alarms(masked: Masked, metrics: Mapping[str, Sequence[Row]]) -> list[str]:
    alarms: list[str] = []
    if masked.alarming and masked.share is not None:
        growth = ", and more in the second half of training than in the first" * masked.grows
        alarms.append(
            f"{_small_percent(masked.share)} of the episodes were masked{growth}: "
            "see “Masked episodes” for the causes before trusting the figures."
        )
    for stage, rows in metrics.items():
        bad = sum(
            isinstance(row.get("loss"), float) and finite(row["loss"]) is None for row in rows
        )
        if bad:
            alarms.append(
                f"The {stage.upper()} loss was not a finite number at {bad} of {len(rows)} steps."
            )
    return [visible(alarm) for alarm in alarms]


def _percent(share: float) -> str:
    return f"{share * 100:.1f}%"


def _small_percent(share: float) -> str:
    return f"{share * 100:.2g}%" if share < 0.01 else _percent(share)


def _count(number: float) -> str:
    return f"{number:,.0f}" if abs(number) < 1e15 else f"{number:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
