"""The sandboxes: how fast they start, answer and die, beside bwrap and docker exec.

For every backend that works here: from start to the first result of its Python session, a call,
a start out of a warm pool, the end of a tree of processes, memory of each of many that live at
once, starts and three-call episodes per second. "namespace" is measured without control groups and,
where this user may make them, with them ("namespace_grouped"). Peers: `bwrap` starting the same
interpreter in the same root file system, and `docker exec` of it in a running container.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from palestra.tools.sandboxes import Sandbox, SandboxPool, SandboxSpec
from palestra.tools.sandboxes.choose import backend_class

RESULTS = Path(__file__).parent / "results" / "sandboxes.json"
VARIANTS = ("namespace", "namespace_grouped", "landlock", "docker", "docker_runsc", "unsafe")
Figures = dict[str, float]


def spec_of(variant: str, **options: Any) -> SandboxSpec:
    """What a variant is started with."""
    backend = variant.partition("_")[0]
    runtime = "runsc" if variant == "docker_runsc" else "runc"
    return SandboxSpec(
        backend=backend, runtime=runtime, requires=frozenset(), packages=(), **options
    )


def spread(name: str, seconds: list[float]) -> Figures:
    """Median and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {
        f"{name}_ms_p50": round(1000 * statistics.median(ordered), 3),
        f"{name}_ms_p99": round(1000 * last, 3),
    }


async def timed(call: Callable[[], Awaitable[Any]]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


async def started(spec: SandboxSpec) -> Sandbox:
    """A sandbox that has given its first result."""
    sandbox = backend_class(spec.backend)(spec)
    await sandbox.start()
    assert (await sandbox.python("6 * 7")).value == "42"
    return sandbox


async def measure_one(variant: str, starts: int, calls: int) -> Figures:
    """Start, call and kill, one after the other."""
    spec = spec_of(variant)
    await (await started(spec)).kill()  # root file system, zygote, image
    begins, ends = [], []
    for _ in range(starts):
        began = time.perf_counter()
        sandbox = await started(spec)
        begins.append(time.perf_counter() - began)
        if variant != "unsafe":  # whose daemons nobody would end
            await sandbox.run("for i in 1 2 3; do (setsid sleep 1000 &) ; done")
        ends.append(await timed(sandbox.kill))
    sandbox = await started(spec)
    answers = [await timed(lambda: sandbox.python("6 * 7")) for _ in range(calls)]
    commands = [await timed(lambda: sandbox.run(["true"])) for _ in range(calls // 10)]
    await sandbox.kill()
    return {
        **spread("start", begins),
        **spread("call", answers),
        **spread("run", commands),
        **spread("kill", ends),
    }


async def measure_pool(variant: str, count: int) -> Figures:
    """What an asker waits for a warm one, when askers leave time to warm the next."""
    pool = SandboxPool(spec_of(variant, warm=4, max_live=8))
    waits = []
    await pool.release(await pool.acquire())
    for _ in range(count):
        while pool.counts()["idle"] < 4:  # noqa: ASYNC110 (of threads, which set no event)
            await asyncio.sleep(0.005)
        began = time.perf_counter()
        sandbox = await pool.acquire()
        waits.append(time.perf_counter() - began)
        await pool.release(sandbox)
    await pool.aclose()
    return spread("acquire", waits)


async def measure_rate(variant: str, count: int, concurrency: int = 4) -> Figures:
    """Sandboxes started to their first result, and killed, per second."""
    spec = spec_of(variant)
    slots = asyncio.Semaphore(concurrency)

    async def one() -> None:
        async with slots:
            await (await started(spec)).kill()

    seconds = await timed(lambda: asyncio.gather(*(one() for _ in range(count))))
    return {"per_s": round(count / seconds, 1)}


def measure_episodes(variant: str, count: int, threads: int = 4) -> Figures:
    """Episodes of three calls per second, on threads with an event loop each."""
    spec = spec_of(variant)

    async def episode() -> None:
        sandbox = await started(spec)
        await sandbox.python("x = 1")
        await sandbox.python("x + 1")
        await sandbox.kill()

    def work() -> None:
        async def play() -> None:
            for _ in range(count // threads):
                await episode()

        asyncio.run(play())

    workers = [threading.Thread(target=work) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"episodes_per_s": round(count / (time.perf_counter() - began), 1)}


def available_mb() -> float:
    """Memory that the machine could still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


async def measure_live(variant: str, count: int) -> Figures:
    """Memory of each of many that live at once, and a call among them."""
    spec = spec_of(variant)
    await (await started(spec)).kill()
    before = available_mb()
    slots = asyncio.Semaphore(4)

    async def one() -> Sandbox:
        async with slots:
            return await started(spec)

    sandboxes = await asyncio.gather(*(one() for _ in range(count)))
    taken = before - available_mb()
    waits = [await timed(functools.partial(s.python, "1 + 1")) for s in sandboxes]
    seconds = await timed(lambda: asyncio.gather(*(s.kill() for s in sandboxes)))
    return {
        "live": count,
        "mb_each": round(taken / count, 2),
        "call_among_live_ms_p50": round(1000 * statistics.median(waits), 3),
        "kill_all_s": round(seconds, 3),
    }


def measure(variant: str, quick: bool) -> Figures:
    """Everything about one variant. Runs in a process of its own."""
    slow = variant.startswith("docker")
    starts = (6 if slow else 30) if quick else (20 if slow else 200)
    live = (4 if slow else 50) if quick else (20 if slow else 500)
    figures = asyncio.run(measure_one(variant, starts, 300 if quick else 2000))
    figures |= asyncio.run(measure_pool(variant, starts // 2))
    figures |= asyncio.run(measure_rate(variant, starts * (1 if slow else 3)))
    figures |= measure_episodes(variant, 4 * (starts // 2))
    if variant != "unsafe":
        figures |= asyncio.run(measure_live(variant, live))
    return figures


def measure_bwrap(count: int) -> Figures:
    """A process of the same interpreter in the same root file system, from start to exit."""
    from palestra.tools.sandboxes.rootfs import prepare_rootfs

    command = [
        *["bwrap", "--unshare-all", "--die-with-parent", "--clearenv"],
        *["--ro-bind", str(prepare_rootfs(())), "/", "--proc", "/proc", "--dev", "/dev"],
        *["--tmpfs", "/tmp", "/usr/local/bin/python3", "-I", "-S", "-c", "print(6 * 7)"],
    ]
    waits = []
    for _ in range(count):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        waits.append(time.perf_counter() - began)
        assert done.stdout == "42\n"
    return spread("start", waits)


def measure_docker_exec(count: int) -> Figures:
    """`docker exec` of the same in a container that runs already."""
    from palestra.tools.sandboxes.docker_daemon import daemon
    from palestra.tools.sandboxes.docker_image import image_for

    image = image_for(daemon().client, spec_of("docker"))
    run = ["docker", "run", "-d", "--rm", "--network", "none", "--entrypoint", "/bin/sh"]
    done = subprocess.run(
        [*run, image, "-c", "sleep 600"], capture_output=True, text=True, check=True
    )
    container = done.stdout.strip()
    waits = []
    try:
        for _ in range(count):
            began = time.perf_counter()
            command = ["docker", "exec", container, "python3", "-I", "-S", "-c", "print(6 * 7)"]
            subprocess.run(command, capture_output=True, check=True)
            waits.append(time.perf_counter() - began)
    finally:
        subprocess.run(["docker", "rm", "-f", container], capture_output=True, check=False)
    return spread("call", waits)


def problem_of(variant: str) -> str:
    """Why a variant cannot be measured here."""
    if variant == "namespace_grouped":
        from palestra.tools.sandboxes.control_groups import writable_hierarchy

        if writable_hierarchy() is None:
            return "no control groups may be made here"
    spec = spec_of(variant)
    return backend_class(spec.backend).capabilities(spec).problem


def in_a_process(variant: str, quick: bool) -> Figures:
    """Measured apart, so that no variant meets what another has left warm."""
    command = [sys.executable, __file__, "--variant", variant, *(["--quick"] if quick else [])]
    grouped = "off" if variant == "namespace" else "on"
    done = subprocess.run(
        command,
        env={**os.environ, "PALESTRA_CONTROL_GROUPS": grouped},
        stdout=subprocess.PIPE,
        check=True,
    )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.variant, options.quick)))
        return
    console = Console()
    found: dict[str, Figures] = {}
    for variant in VARIANTS:
        if problem := problem_of(variant):
            console.print(f"{variant}: not measured, {problem}")
            continue
        found[variant] = in_a_process(variant, options.quick)
    peers = {"bwrap": (measure_bwrap, "bwrap"), "docker_exec": (measure_docker_exec, "docker")}
    for name, (measure_peer, program) in peers.items():
        if shutil.which(program) is None or (name == "docker_exec" and "docker" not in found):
            console.print(f"{name}: not measured, no {program} here")
            continue
        found[name] = measure_peer(10 if options.quick else 60)
    keys = list(dict.fromkeys(key for figures in found.values() for key in figures))
    table = Table("", *found)
    for key in keys:
        table.add_row(key, *(str(figures.get(key, "")) for figures in found.values()))
    console.print(table)
    flat = {
        f"{name}.{key}": value for name, figures in found.items() for key, value in figures.items()
    }
    if "bwrap" in found and "namespace" in found:
        ratio = found["bwrap"]["start_ms_p50"] / found["namespace"]["start_ms_p50"]
        flat["namespace.starts_over_bwrap"] = round(ratio, 2)
    if "docker_exec" in found:
        ratio = found["docker_exec"]["call_ms_p50"] / found["docker"]["call_ms_p50"]
        flat["docker.calls_over_docker_exec"] = round(ratio, 1)
    if not options.quick:
        RESULTS.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
