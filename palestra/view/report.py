"""Write a run's report: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from palestra.view.charts import chart_groups
from palestra.view.headline import headline
from palestra.view.page import page
from palestra.view.run_files import flat_rows, read_run
from palestra.view.transcripts import read_transcripts


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's directory and return its path.

    A run that is still going gets a report of what it has written so far; lines that cannot be
    read are skipped, and the report says how many.

    Raises:
        ValueError: there is no such directory, or it holds no `metrics.jsonl`.
    """
    run = read_run(run_dir)
    transcripts = read_transcripts(run_dir / "transcripts.jsonl")
    html = page(
        {
            "headline": asdict(headline(run)),
            "notices": [*run.notices, *transcripts.notices],
            "groups": [asdict(group) for group in chart_groups(run.metrics)],
            "transcripts": asdict(transcripts),
            "config": flat_rows(run.config),
            "summary": flat_rows(run.summary or {}),
        }
    )
    path = run_dir / "report.html"
    # A reader (or a full disk) never sees half a page.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(html, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
