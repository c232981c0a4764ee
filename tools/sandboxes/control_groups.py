"""Linux control groups, version 1 or 2: what bounds all processes of a sandbox together."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from palestra.tools.sandboxes.limits import Limits

ROOT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
_CONTROLLERS = ("memory", "pids", "cpu")
_count = itertools.count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Hierarchy:
    """Where groups can be made here.

    `folders` are the parents of new groups, by controller: three under version 1, the same one
    under version 2.
    """

    version: int
    folders: tuple[tuple[str, Path], ...]

    def parents(self) -> list[Path]:
        """The distinct folders."""
        return list(dict.fromkeys(folder for _, folder in self.folders))


@cache
def writable_hierarchy() -> Hierarchy | None:
    """The control groups that this process may use for sandboxes, or None.

    PALESTRA_CONTROL_GROUPS=off in the environment does without them.
    """
    if os.environ.get("PALESTRA_CONTROL_GROUPS") == "off":
        return None
    return _version_2(ROOT) or _version_1(ROOT)


def _version_1(root: Path) -> Hierarchy | None:
    found = []
    for controller in _CONTROLLERS:
        folder = root / controller
        if not os.access(folder, os.W_OK) or not (folder / "cgroup.procs").exists():
            return None
        found.append((controller, folder))
    return Hierarchy(version=1, folders=tuple(found)) if _can_make_groups(found) else None


def _version_2(root: Path) -> Hierarchy | None:
    """At the top, where a container or root owns it, or beside this process's own group."""
    if not (root / "cgroup.controllers").exists():
        return None
    own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].splitlines()[0]
    for folder in (root / own.strip("/") / "..", root):
        resolved = folder.resolve()
        if not resolved.is_relative_to(root) or not os.access(resolved, os.W_OK):
            continue
        with contextlib.suppress(OSError):
            control = resolved / "cgroup.subtree_control"
            control.write_text(" ".join(f"+{name}" for name in _CONTROLLERS))
            if set(_CONTROLLERS) <= set(control.read_text().split()):
                found = [(name, resolved) for name in _CONTROLLERS]
                if _can_make_groups(found):
                    return Hierarchy(version=2, folders=tuple(found))
    return None


def _can_make_groups(found: list[tuple[str, Path]]) -> bool:
    try:
        for folder in dict.fromkeys(folder for _, folder in found):
            probe = folder / f"palestra-probe-{os.getpid()}"
            probe.mkdir()
            probe.rmdir()
    except OSError:
        return False
    return True


class GroupFolder:
    """The groups of one zygote's sandboxes: a folder in every hierarchy, named for its owner."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.hierarchy = hierarchy
        for parent in hierarchy.parents():
            _remove_left_over(parent)
        self._name = f"palestra-{os.getpid()}-{next(_count)}"
        self.paths = [parent / self._name for parent in hierarchy.parents()]
        for path in self.paths:
            path.mkdir()
            if hierarchy.version == 2:
                control = path / "cgroup.subtree_control"
                control.write_text(" ".join(f"+{name}" for name in _CONTROLLERS))

    def make(self, limits: Limits, *, files_mb: int) -> ControlGroup:
        """A group with these limits; files in memory (`files_mb`) count beside the processes."""
        name = str(next(_count))
        folders = {
            controller: parent / self._name / name for controller, parent in self.hierarchy.folders
        }
        for folder in dict.fromkeys(folders.values()):
            folder.mkdir()
        group = ControlGroup(folders=folders, version=self.hierarchy.version)
        group.set_limits(limits, files_mb)
        return group


def _remove_left_over(parent: Path) -> None:
    """Empty groups of owners that are gone, where even their wardens were killed."""
    for folder in parent.glob("palestra-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            for path in (*filter(Path.is_dir, folder.iterdir()), folder):
                with contextlib.suppress(OSError):  # not empty
                    path.rmdir()


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlGroup:
    """One sandbox's group: a folder per controller."""

    folders: dict[str, Path]
    version: int

    def set_limits(self, limits: Limits, files_mb: int) -> None:
        """Write the bounds. Swap does not extend the memory."""
        memory, pids, cpu = (self.folders[name] for name in _CONTROLLERS)
        most = str((limits.memory_mb + files_mb) << 20)
        quota = max(1000, int(limits.cpus * CPU_PERIOD_US))
        (pids / "pids.max").write_text(str(limits.processes))
        if self.version == 2:
            (memory / "memory.max").write_text(most)
            with contextlib.suppress(OSError):  # a kernel without swap accounting
                (memory / "memory.swap.max").write_text("0")
            (cpu / "cpu.max").write_text(f"{quota} {CPU_PERIOD_US}")
            return
        (memory / "memory.limit_in_bytes").write_text(most)
        with contextlib.suppress(OSError):
            (memory / "memory.memsw.limit_in_bytes").write_text(most)
        (cpu / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
        (cpu / "cpu.cfs_quota_us").write_text(str(quota))

    def add(self, pid: int) -> None:
        """Put a process, and what it will start, into the group."""
        for folder in dict.fromkeys(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def memory_kills(self) -> int:
        """How many processes the kernel has killed for want of memory in the group."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError):
            for line in (self.folders["memory"] / name).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        return 0

    def remove(self) -> None:
        """Remove it once its processes have gone; waits for them a little."""
        for folder in dict.fromkeys(self.folders.values()):
            for _ in range(100):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)
