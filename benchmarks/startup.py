"""How long `import palestra` and `palestra --help` take, beside the imports of peers.

Each figure is the fastest of several fresh processes; the interpreter's own start is
a row of its own. The files are read from a warm cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "startup.json"
COMMAND = str(Path(sys.executable).parent / "palestra")

CASES: dict[str, list[str]] = {
    "interpreter_s": [sys.executable, "-c", "pass"],
    "palestra_import_s": [sys.executable, "-c", "import palestra"],
    "help_s": [COMMAND, "--help"],
    "envs_list_s": [COMMAND, "envs", "list"],
    "gymnasium_import_s": [sys.executable, "-c", "import gymnasium"],
    "torch_import_s": [sys.executable, "-c", "import torch"],
    "trl_import_s": [sys.executable, "-c", "from trl import GRPOTrainer"],
}


def fastest_s(command: list[str], repeats: int) -> float:
    """The least wall time of `repeats` runs after one that warms the file cache."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 10")
    repeats = 3 if parser.parse_args().quick else 10

    figures: dict[str, float] = {}
    table = Table("what", "seconds", "times import palestra")
    for name, command in CASES.items():
        package = name.removesuffix("_import_s")
        if name.endswith("_import_s") and importlib.util.find_spec(package) is None:
            continue
        figures[name] = round(fastest_s(command, repeats), 4)
        ours = figures.get("palestra_import_s")
        ratio = f"{figures[name] / ours:.1f}" if ours else ""
        table.add_row(name.removesuffix("_s").replace("_", " "), f"{figures[name]:.3f}", ratio)
    for peer in ("gymnasium", "trl"):
        if f"{peer}_import_s" in figures:
            figures[f"palestra_over_{peer}"] = round(
                figures["palestra_import_s"] / figures[f"{peer}_import_s"], 4
            )
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
