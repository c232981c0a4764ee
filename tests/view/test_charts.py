"""From metrics to the series that are drawn, and to the alarms above them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from palestra.view.charts import Chart, chart_groups
from palestra.view.headline import headline
from palestra.view.masked import masked_episodes
from palestra.view.run_files import read_run
from palestra.view.thinning import thin

WriteRun = Callable[..., Path]


def chart(title: str, rows: list[dict[str, Any]]) -> Chart:
    (group,) = chart_groups({"rl": rows})
    (found,) = (one for one in [*group.charts, *group.others] if one.title == title)
    return found


def test_sparse_metrics_keep_their_gaps_and_their_band() -> None:
    rows = [
        {"step": 1, "heldout": 0.5, "heldout_low": 0.4, "heldout_high": 0.6},
        {"step": 2, "loss": float("nan")},
    ]
    (series,) = chart("Held-out success", rows).series
    assert series.values == [0.5, None]
    assert series.low == [0.4, None]
    assert series.high == [0.6, None]
    assert {one.title for one in chart_groups({"rl": rows})[0].charts} == {"Held-out success"}


def test_counts_by_kind_are_stacked_most_frequent_first() -> None:
    errors: list[dict[str, Any]] = [{"cut": 1}, {"bad_json": 5, "never": 0}, {}]
    found = chart("Tool errors", [{"step": i, "tool_errors": e} for i, e in enumerate(errors)])
    assert found.stack
    assert [(one.label, one.values) for one in found.series] == [
        ("bad_json", [0, 5, 0]),
        ("cut", [1, 0, 0]),
    ]


def test_rare_kinds_are_taken_together() -> None:
    counts = {f"kind{index}": 100 - index for index in range(20)}
    series = chart("Masked episodes", [{"step": 1, "masked": counts}]).series
    assert len(series) == 7
    assert series[-1].label == "14 other kinds"
    assert sum(one.values[0] or 0 for one in series) == sum(counts.values())


def test_no_errors_at_all_is_a_chart_without_series() -> None:
    assert chart("Tool errors", [{"step": 1, "tool_errors": {}}]).series == []


def test_a_log_axis_needs_positive_values() -> None:
    assert chart(
        "KL to the reference", [{"step": 1, "kl_ref": 0.0}, {"step": 2, "kl_ref": 1.0}]
    ).log
    assert not chart("KL to the reference", [{"step": 1, "kl_ref": -0.1}]).log
    assert not chart("KL to the reference", [{"step": 1, "kl_ref": 0.0}]).log


def test_equal_reward_and_score_share_a_line() -> None:
    row = {"step": 1, "reward_mean": 0.5, "score_mean": 0.5}
    assert [one.label for one in chart("Reward", [row]).series] == ["mean reward = mean score"]
    assert len(chart("Reward", [{**row, "score_mean": 0.4}]).series) == 2


def test_an_unknown_metric_is_plotted_under_its_name() -> None:
    assert chart("my_metric", [{"step": 1, "my_metric": 2}]).series[0].values == [2.0]


def test_an_unknown_stage_is_plotted_after_the_known_ones() -> None:
    row = {"step": 1, "loss": 1.0}
    titles = [group.title for group in chart_groups({"dpo": [row], "sft": [row], "rl": [row]})]
    assert titles == ["Reinforcement learning", "Supervised warm start", "dpo"]


def test_thinning_averages_but_keeps_maxima_and_the_last_step() -> None:
    rows = [
        {"step": step, "loss": step, "diff_max": step, "masked": {"engine": 1}, "rare": None}
        for step in range(1, 11)
    ]
    rows[3]["rare"] = 7
    thinned = thin(rows, 5)
    assert [row["step"] for row in thinned] == [2, 4, 6, 8, 10]
    assert [row["loss"] for row in thinned] == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert [row["diff_max"] for row in thinned] == [2, 4, 6, 8, 10]
    assert [row["rare"] for row in thinned] == [None, 7, None, None, None]
    assert thinned[0]["masked"] == {"engine": 1}
    assert thin(rows, 10) is rows


def test_more_than_two_percent_masked_alarms() -> None:
    def share(masked: int) -> tuple[float | None, bool]:
        row = {"step": 1, "masked": {"engine": masked}, "episodes": 100}
        found = masked_episodes([row, row], None)
        return found.share, found.alarming

    assert share(2) == (0.02, False)
    assert share(3) == (0.03, True)


def test_a_growing_masked_share_alarms_below_two_percent() -> None:
    early = {"step": 1, "masked": {}, "groups_kept": 100, "groups_dropped": 25}
    late = {**early, "masked": {"tool:search": 15}}
    growing = masked_episodes([early, late], 8)
    assert growing.share == 15 / 2000
    assert growing.alarming
    assert not masked_episodes([late, early], 8).alarming


def test_the_masked_share_is_unknown_without_episode_counts() -> None:
    found = masked_episodes([{"step": 1, "masked": {"engine": 3}}], None)
    assert (found.masked, found.share, found.alarming) == (3, None, False)


def test_overlapping_intervals_are_not_called_a_rise(write_run: WriteRun) -> None:
    summary = {
        "heldout_before": 0.70,
        "heldout_before_low": 0.66,
        "heldout_before_high": 0.74,
        "heldout_after": 0.75,
        "heldout_after_low": 0.71,
        "heldout_after_high": 0.79,
    }
    sentence = headline(read_run(write_run(summary=summary))).sentence
    assert sentence == "Held-out success went from 70.0% to 75.0%; the intervals overlap."


def test_a_fall_is_called_a_fall(write_run: WriteRun) -> None:
    summary = {"heldout_before": 0.9, "heldout_after": 0.5}
    sentence = headline(read_run(write_run(summary=summary))).sentence
    assert sentence == "Held-out success fell from 90.0% to 50.0%."


def test_facts_are_printed_with_their_units(write_run: WriteRun, rl_row: dict[str, Any]) -> None:
    run = write_run(
        summary={"wall_s": 3700.4, "control_gain": 0.008, "model_parameters": 412416},
        metrics=[{**rl_row, "step": 1, "masked": {"engine": 2}}],
    )
    found = headline(read_run(run))
    facts = {fact.label: (fact.value, fact.note, fact.alarm) for fact in found.facts}
    assert facts["wall time"] == ("1 h 1 min", "", False)
    assert facts["control gain"] == ("+0.8 points", "shuffled rewards", False)
    assert facts["parameters"] == ("412,416", "", False)
    assert facts["masked episodes"] == ("6.2%", "2 of 32", True)  # 4 groups of 8
    assert found.alarms[0].startswith("6.2% of the episodes were masked: ")
