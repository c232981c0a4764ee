"""`palestra demo`: run it and show what came out in a short table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from palestra.demo import run_demo
from palestra.trainer.config import EngineName


def run(out: Path | None, *, seed: int, engine: EngineName, control: bool, rehearsal: bool) -> int:
    """Run the demo. Raises ValueError if the folder is in use or the engine is not installed."""
    _print(run_demo(out, seed=seed, engine=engine, control=control, rehearsal=rehearsal))
    return 0


def _print(summary: dict[str, Any]) -> None:
    table = Table("", "held-out success", "95% interval", title=f"{summary['env_id']}")
    for name, label in {"before": "after imitation", "after": "after GRPO"}.items():
        low, high = summary[f"heldout_{name}_low"], summary[f"heldout_{name}_high"]
        table.add_row(label, f"{summary[f'heldout_{name}']:.3f}", f"{low:.3f} to {high:.3f}")
    console = Console()
    console.print(table)
    console.print(
        f"{summary['heldout_n']} held-out tasks, {summary['sft_steps']} steps of imitation and "
        f"{summary['rl_steps']} of GRPO in {summary['wall_s']:.0f} s, "
        f"{summary['peak_memory_mb']} MiB of memory at most.",
        highlight=False,
    )
    console.print(f"report:     {summary['report']}", highlight=False, soft_wrap=True)
    console.print(f"checkpoint: {summary['checkpoint']}", highlight=False, soft_wrap=True)
