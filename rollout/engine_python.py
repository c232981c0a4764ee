"""Where a served engine can run: the interpreter that has it, and whether there is a GPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from palestra.rollout.engine_errors import ServerNotStarted


def find_python(engine: str) -> Path:
    """The interpreter that has `engine`, "vllm" or "sglang".

    `PALESTRA_VLLM_PYTHON` (`PALESTRA_SGLANG_PYTHON`) names one; else it is the one that `make vllm`
    (`make sglang`) made beside the sources, or this one.

    Raises:
        ServerNotStarted: there is none.
    """
    variable = f"PALESTRA_{engine.upper()}_PYTHON"
    made = Path(__file__).resolve().parents[1] / f".venv-{engine}"
    if named := os.environ.get(variable):
        if not Path(named).exists():
            raise ServerNotStarted(f"{variable} is {named}, which does not exist")
        return Path(named)
    if (made / ".installed").exists():
        return made / "bin" / "python"
    if importlib.util.find_spec(engine) is not None:
        return Path(sys.executable)
    raise ServerNotStarted(
        f"{engine} is not installed: run `make {engine}`, or set {variable} to the Python of an "
        "environment that has it (docs/engines.md)"
    )


def has_gpu() -> bool:
    """Whether this machine has an accelerator that engines would use."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
