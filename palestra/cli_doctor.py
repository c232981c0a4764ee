"""`palestra doctor`: what this machine offers and what follows from it, without importing torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

GIB = 1 << 30
# System calls of Linux that Python has no name for.
SYS_LANDLOCK_CREATE_RULESET = 444
LANDLOCK_CREATE_RULESET_VERSION = 1
CLONE_NEWUSER = 0x10000000


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
    if as_json:
        print(json.dumps({finding.name: asdict(finding) for finding in findings}, indent=2))
        return 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = {True: "yes", False: "no", None: "-"}[finding.ok]
        advice = f"  ({finding.advice})" if finding.advice else ""
        print(f"{finding.name:<{width}}  {mark:<3}  {finding.found}{advice}")
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
    yield _docker()
    yield _user_namespaces()
    yield _landlock()
    yield _chromium()


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


def _docker() -> Finding:
    def answers(address: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2)
            connection.connect(address)
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b"200" in connection.recv(64)

    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        return Finding(name="docker", found=f"a remote daemon, {host}, not asked", ok=None)
    if _holds(lambda: answers(host.removeprefix("unix://"))):
        return Finding(name="docker", found="the daemon answers")
    return Finding(
        name="docker", found="no daemon", ok=None, advice="only the docker sandbox needs it"
    )


def _user_namespaces() -> Finding:
    # Tried in a process of its own: a namespace once entered cannot be left.
    code = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare({CLONE_NEWUSER}) != 0)"
    if sys.platform == "linux" and _output_of([sys.executable, "-I", "-S", "-c", code]) is not None:
        return Finding(name="user namespaces", found="may be created")
    return Finding(
        name="user namespaces", found="denied", ok=False, advice="sandboxes fall back to landlock"
    )


def _landlock() -> Finding:
    def version() -> int:
        return int(
            ctypes.CDLL(None).syscall(
                SYS_LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION
            )
        )

    abi = version() if sys.platform == "linux" else -1
    if abi > 0:
        return Finding(name="landlock", found=f"version {abi} of its interface")
    return Finding(name="landlock", found="not offered by this kernel", ok=None)


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


def _holds(probe: Callable[[], bool]) -> bool:
    try:
        return probe()
    except OSError:
        return False


def _output_of(command: list[str]) -> str | None:
    """What a short command prints; None if it is missing, fails or takes over five seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
