"""The attacks that have run are those that the table says must run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from palestra.tools.sandboxes import SandboxSpec


def test_every_pair_of_the_table_has_run_and_no_other(
    executed: set[tuple[str, int]],
    left_out: list[str],
    rows: dict[int, dict[str, Any]],
    available: Callable[[str], SandboxSpec],
) -> None:
    if left_out:
        pytest.skip(f"only a part of the attacks was to be run, not {left_out[0]}")
    for backend in sorted({name for row in rows.values() for name in row["backends"]}):
        try:
            available(backend)
        except pytest.skip.Exception:
            assert not os.environ.get("CI")
            continue
        expected = {number for number, row in rows.items() if backend in row["backends"]}
        ran = {number for name, number in executed if name == backend}
        assert ran == expected, backend


def test_the_table_has_the_rows_of_the_threat_model(rows: dict[int, dict[str, Any]]) -> None:
    # From 56 on they attack verifiers, not sandboxes, and are tested there.
    assert sorted(rows) == list(range(1, 56))
    assert all(row["backends"] for row in rows.values())
