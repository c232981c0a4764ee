"""Which plots a run gets: metrics rows in, series to draw out.

What is plotted stands in the tables `SFT` and `RL`; whatever else is a number in the metrics is
plotted under its own name after them, so that a new metric needs no line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from palestra.view.run_files import Row, finite
from palestra.view.thinning import MAX_POINTS, thin
from palestra.view.visible import visible

MAX_KINDS = 7  # as many colours as can be told apart
MAX_OTHERS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A line of the tables below: `keys` maps metrics to labels.

    A metric that is a dict of counts becomes a stack; a stack of several plain metrics sets
    `stack`. The axis starts at `floor` and reaches at least `ceiling` where they are given; `log`
    asks for a logarithmic axis where all values are positive.
    """

    title: str
    keys: Mapping[str, str]
    about: str = ""
    unit: str = ""
    stack: bool = False
    log: bool = False
    floor: float | None = None
    ceiling: float | None = None


SFT = (
    Plot(title="Loss", keys={"loss": "cross-entropy"}, unit="nats per trained token", floor=0.0),
    Plot(
        title="Success",
        keys={"success": "success"},
        about="Sampled attempts.",
        floor=0.0,
        ceiling=1.0,
    ),
    Plot(title="Learning rate", keys={"learning_rate": "learning rate"}, floor=0.0),
    Plot(title="Time", keys={"seconds": "time"}, unit="seconds per step", floor=0.0),
)
RL = (
    Plot(
        title="Reward",
        keys={"reward_mean": "mean reward", "score_mean": "mean score"},
        about="Mean over the episodes sampled at each step.",
    ),
    Plot(
        title="Held-out success",
        keys={"heldout": "success"},
        about="Tasks never trained on; the band is the 95% interval.",
        ceiling=1.0,
    ),
    Plot(
        title="Completion length",
        keys={"completion_tokens_mean": "sampled tokens"},
        unit="per episode",
    ),
    Plot(title="Turns", keys={"turns_mean": "turns"}, unit="per episode"),
    Plot(
        title="Tool errors",
        keys={"tool_errors": ""},
        about="By kind. The model sees these errors and may recover.",
        unit="per step",
    ),
    Plot(
        title="Masked episodes",
        keys={"masked": ""},
        about="By cause: not the policy's fault, so neither trained on nor counted.",
        unit="per step",
    ),
    Plot(
        title="Engine–trainer mismatch",
        keys={"logprob_diff_max": "largest", "logprob_diff_mean": "mean"},
        about="Difference of log-probabilities over sampled tokens.",
        unit="nats",
        log=True,
    ),
    Plot(
        title="KL to the reference",
        keys={"kl_ref": "KL"},
        about="How far the policy has moved from where it started.",
        unit="nats per token",
        log=True,
    ),
    Plot(
        title="Entropy",
        keys={"entropy": "entropy"},
        about="Near zero, there is nothing left to explore.",
        unit="nats per token",
        floor=0.0,
    ),
    Plot(
        title="Clipped tokens",
        keys={"clip_fraction": "share"},
        about="Share of tokens whose ratio met the clip.",
        floor=0.0,
    ),
    Plot(title="Gradient norm", keys={"grad_norm": "norm"}, floor=0.0),
    Plot(title="Loss", keys={"loss": "loss"}),
    Plot(
        title="Groups",
        keys={"groups_kept": "trained on", "groups_dropped": "dropped: equal rewards"},
        unit="per step",
        stack=True,
    ),
    Plot(
        title="Time",
        keys={"seconds_sample": "sampling", "seconds_train": "training"},
        unit="seconds per step",
        stack=True,
    ),
    Plot(title="Tokens", keys={"tokens": "tokens"}, unit="per step", floor=0.0),
    Plot(title="Learning rate", keys={"learning_rate": "learning rate"}, floor=0.0),
)
# What a reader came for stands first, not what happened first.
STAGES = {
    "rl": ("Reinforcement learning", RL),
    "sft": ("Supervised warm start", SFT),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line or layer, a value (or None) for each of the group's steps."""

    label: str
    values: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    title: str
    about: str
    unit: str
    stack: bool
    log: bool
    floor: float | None
    ceiling: float | None
    series: list[Series]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChartGroup:
    """The charts of one stage, which share their steps."""

    title: str
    note: str
    steps: list[float]
    charts: list[Chart] = field(default_factory=list)
    others: list[Chart] = field(default_factory=list)


def chart_groups(metrics: Mapping[str, Sequence[Row]]) -> list[ChartGroup]:
    """One group a stage, the known stages first."""
    known = [stage for stage in STAGES if stage in metrics]
    return [_group(stage, metrics[stage]) for stage in [*known, *sorted({*metrics} - {*known})][:8]]


def _group(stage: str, all_rows: Sequence[Row]) -> ChartGroup:
    title, plots = STAGES.get(stage, (visible(stage, 40), ()))
    rows = thin(all_rows)
    note = ""
    if len(rows) < len(all_rows):
        per_point = -(-len(all_rows) // MAX_POINTS)
        note = f"Each point is the mean of {per_point} steps (of maxima, the largest)."
    keys = {key for row in rows for key in row}
    covered = {"stage", "step", *(key for plot in plots for key in plot.keys)}
    bounds = {f"{key}_{end}" for key in keys for end in ("low", "high")}
    others = sorted(keys - covered - bounds)
    other_plots = (Plot(title=visible(key, 60), keys={key: ""}) for key in others[:MAX_OTHERS])
    return ChartGroup(
        title=title,
        note=note,
        steps=[row["step"] for row in rows],
        charts=_charts(plots, rows),
        others=_charts(other_plots, rows),
    )


def _charts(plots: Iterable[Plot], rows: Sequence[Row]) -> list[Chart]:
    return [chart for plot in plots if (chart := _chart(plot, rows)) is not None]


def _chart(plot: Plot, rows: Sequence[Row]) -> Chart | None:
    """The plot filled with values; None when the run has none of its metrics."""
    series: list[Series] = []
    counts = False
    for key, label in plot.keys.items():
        if any(isinstance(row.get(key), dict) for row in rows):
            counts = True
            series += _kinds(key, rows)
        elif any(finite(row.get(key)) is not None for row in rows):
            series.append(
                Series(
                    label=label or visible(key, 60),
                    values=_column(key, rows),
                    low=_bound(f"{key}_low", rows),
                    high=_bound(f"{key}_high", rows),
                )
            )
    if not series and not counts:
        return None
    if len(series) == 2 and not plot.stack and series[0].values == series[1].values:
        series = [Series(label=f"{series[0].label} = {series[1].label}", values=series[0].values)]
    values = [value for one in series for value in one.values if value is not None]
    stack = counts or (plot.stack and all(value >= 0 for value in values))
    return Chart(
        title=plot.title,
        about=plot.about,
        unit=plot.unit,
        stack=stack,
        # A few exact zeros (nothing differed at a step) leave gaps; a sign change needs zero.
        log=plot.log and any(values) and all(value >= 0 for value in values),
        floor=0.0 if stack else plot.floor,
        ceiling=plot.ceiling,
        series=series,
    )


def _kinds(key: str, rows: Sequence[Row]) -> list[Series]:
    """A series for each kind counted, the most frequent first, the rare ones together."""
    dicts = [value if isinstance(value := row.get(key), dict) else {} for row in rows]
    totals: dict[str, float] = {}
    for counts in dicts:
        for kind, count in counts.items():
            totals[kind] = totals.get(kind, 0.0) + (finite(count) or 0.0)
    kinds = sorted((kind for kind in totals if totals[kind] > 0), key=lambda kind: -totals[kind])
    shown = kinds if len(kinds) <= MAX_KINDS else kinds[: MAX_KINDS - 1]
    series = [
        Series(
            label=visible(kind, 60), values=[finite(counts.get(kind)) or 0.0 for counts in dicts]
        )
        for kind in shown
    ]
    if rare := kinds[len(shown) :]:
        sums = [sum(finite(counts.get(kind)) or 0.0 for kind in rare) for counts in dicts]
        series.append(Series(label=f"{len(rare)} other kinds", values=sums))
    return series


def _bound(key: str, rows: Sequence[Row]) -> list[float | None] | None:
    return _column(key, rows) if any(finite(row.get(key)) is not None for row in rows) else None


def _column(key: str, rows: Sequence[Row]) -> list[float | None]:
    return [None if (value := finite(row.get(key))) is None else _short(value) for row in rows]


def _short(value: float) -> float:
    """Six significant digits: more than a screen can show, in half the bytes."""
    return float(f"{value:.6g}")
