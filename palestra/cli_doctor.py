"""`palestra doctor`: what this machine offers and what follows from it, without importing torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from palestra.tools.sandboxes import SAFE, Capabilities, Guarantee, SandboxSpec, all_capabilities

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at. `ok` is None where its absence costs nothing."""

    name: str
    found: str
    ok: bool | None = True
    advice: str = ""


def report(*, as_json: bool) -> int:
    """Print every finding; 0 even when something is missing: what is needed depends on the use."""
    findings = list(examine())
    offers = all_capabilities(SandboxSpec())
    if as_json:
        found: dict[str, object] = {finding.name: asdict(finding) for finding in findings}
        found["sandboxes"] = {offered.backend: asdict(offered) for offered in offers}
        print(json.dumps(found, indent=2))
        return 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = {True: "yes", False: "no", None: "-"}[finding.ok]
        advice = f"  ({finding.advice})" if finding.advice else ""
        print(f"{finding.name:<{width}}  {mark:<3}  {finding.found}{advice}")
    print_guarantees(offers)
    return 0


def examine() -> Iterator[Finding]:
    """Look at everything, quickly: no probe takes longer than five seconds."""
    yield Finding(name="python", found=f"{platform.python_version()} at {sys.executable}")
    yield Finding(name="platform", found=f"{platform.system()} {platform.machine()}")
    yield _cores()
    yield _memory()
    free = shutil.disk_usage(".").free
    yield Finding(
        name="disk",
        found=f"{free / GIB:.1f} GiB free here",
        ok=free > GIB,
        advice="" if free > GIB else "checkpoints need room: write elsewhere with --out",
    )
    yield _gpu()
    yield _package("torch", "pip install 'palestra[train]'")
    yield _package("transformers", "pip install 'palestra[train]'")
    yield _package("vllm", "optional: a faster engine, in an environment of its own")
    yield _package("sglang", "optional: a faster engine, in an environment of its own")
    yield _chromium()
    for offered in all_capabilities(SandboxSpec()):
        yield _sandbox(offered)


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        return Finding(
            name="cores", found=f"{usable}, limited to {int(quota[0]) / int(quota[1]):.1f}"
        )
    return Finding(name="cores", found=str(usable))


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max")
    if limit.isdigit():
        total = min(total, int(limit))
    enough = total >= 2 * GIB
    return Finding(
        name="memory",
        found=f"{total / GIB:.1f} GiB",
        ok=enough,
        advice="" if enough else "palestra demo needs up to 2 GiB",
    )


def _gpu() -> Finding:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    lines = (_output_of(query) or "").splitlines()
    if not lines:
        return Finding(name="gpu", found="no NVIDIA GPU", ok=None, advice="the demo needs none")
    return Finding(name="gpu", found="; ".join(lines))


def _package(name: str, advice: str) -> Finding:
    """An installed package's version, read from its metadata: importing torch takes seconds."""
    if importlib.util.find_spec(name) is None:
        return Finding(
            name=name,
            found="not installed",
            ok=None if advice.startswith("optional") else False,
            advice=advice,
        )
    for distribution in (name, f"{name}-cpu"):
        try:
            return Finding(name=name, found=importlib.metadata.version(distribution))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Finding(name=name, found="installed, of unknown version")


def _sandbox(offered: Capabilities) -> Finding:
    name = f"sandbox {offered.backend}"
    if offered.backend == "unsafe":
        return Finding(name=name, found="protects nothing: only when asked for by name", ok=None)
    if not offered.available:
        return Finding(name=name, found="not available", ok=None, advice=offered.problem)
    missing = offered.missing(SAFE)
    if missing:
        advice = (
            f"lacks {', '.join(missing)}: refused by environments that do not say they do without"
        )
        return Finding(name=name, found="works, not for hostile code", ok=None, advice=advice)
    return Finding(name=name, found=f"holds all of the {len(SAFE)} default guarantees")


def print_guarantees(offers: list[Capabilities]) -> None:
    """A table: what each backend that works here guarantees, and how."""
    offers = [offered for offered in offers if offered.available]
    table = Table("sandbox guarantee", *(offered.backend for offered in offers))
    for guarantee in Guarantee:
        name = f"{guarantee} *" if guarantee in SAFE else str(guarantee)
        table.add_row(name, *(offered.guarantees.get(guarantee, "-") for offered in offers))
    Console().print(table)
    print("* required by default; see docs/sandboxes.md")


def _chromium() -> Finding:
    names = ["chromium", "chromium-browser", "google-chrome"]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is not None:
        return Finding(name="chromium", found=path)
    return Finding(
        name="chromium", found="none", ok=None, advice="only a test of the reports needs it"
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _output_of(command: list[str]) -> str | None:
    """What a short command prints; None if it is missing, fails or takes over five seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
