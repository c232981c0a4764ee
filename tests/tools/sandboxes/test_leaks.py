"""Thousands of episodes with random deaths leave nothing on the host: the long form."""

import asyncio
import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from palestra.tools.sandboxes import Sandbox, SandboxDied, SandboxPool, SandboxSpec
from palestra.tools.sandboxes.choose import backend_class
from palestra.tools.sandboxes.docker import DockerSandbox
from palestra.tools.sandboxes.namespace import NamespaceSandbox
from palestra.tools.sandboxes.zygote_process import DEDICATED_UID
from palestra.types import Failure

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user's sandboxes have its own uid"),
]

DOES = (
    "x = 1",
    "import os; os._exit(1)",
    "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "open('file', 'w').write('x' * 100000)",
    "import ctypes; ctypes.string_at(0)",
)


# Who runs in sandboxes that root starts: the zygote's user, and nobody in containers.
SANDBOX_UIDS = {DEDICATED_UID, 65534}


def processes() -> set[int]:
    """Of sandboxes, whoever started them; nothing else on the host has these users."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid in SANDBOX_UIDS:
                found.add(int(name))
    return found


def left_on_host() -> dict[str, int]:
    """What a leak would add to."""
    groups = [
        *Path("/sys/fs/cgroup").glob("*/palestra-*/*"),
        *Path("/sys/fs/cgroup").glob("palestra-*/*"),
    ]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "groups": sum(path.is_dir() for path in groups),
        "temporary files": len(list(Path(tempfile.gettempdir()).glob("palestra-*"))),
    }


def kill_from_outside(sandbox: Sandbox) -> None:
    if isinstance(sandbox, NamespaceSandbox):
        signal.pidfd_send_signal(sandbox._pidfd, signal.SIGKILL)
    elif isinstance(sandbox, DockerSandbox):
        from palestra.tools.sandboxes.docker_daemon import daemon

        daemon().client.kill(sandbox._name)


async def play(pool: SandboxPool, draw: random.Random, ends: dict[str, int]) -> None:
    sandbox = await pool.acquire()
    end = "used"
    try:
        if draw.random() < 0.1:
            kill_from_outside(sandbox)
        async with asyncio.timeout(0.02 if draw.random() < 0.05 else 60):
            await sandbox.python(draw.choice(DOES))
    except SandboxDied:
        end = "died"
    except Failure:
        end = "failed"
    except TimeoutError:
        end = "cancelled"
    finally:
        await pool.release(sandbox)
    ends[end] = ends.get(end, 0) + 1


@pytest.mark.parametrize(("backend", "episodes"), [("namespace", 10_000), ("docker", 500)])
def test_nothing_is_left_after_thousands_of_episodes(
    backend: str, episodes: int, available: Callable[[str], SandboxSpec]
) -> None:
    available(backend)
    spec = SandboxSpec(backend=backend, packages=(), requires=frozenset(), warm=4, max_live=8)
    draw = random.Random(0)
    ends: dict[str, int] = {}

    async def main() -> None:
        pool = SandboxPool(spec)
        for _ in range(8):  # zygote, warden, client's connections
            await play(pool, draw, {})
        # Of the warm ones only the zygote, which stays, is still there at the end.
        before, running = left_on_host(), processes()
        slots = asyncio.Semaphore(8)

        async def one() -> None:
            async with slots:
                await play(pool, draw, ends)

        await asyncio.gather(*(one() for _ in range(episodes)))
        after = left_on_host()
        await pool.aclose()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while len(processes() - running) > 0:  # noqa: ASYNC110 (of the host's processes)
                    await asyncio.sleep(0.1)
        assert sum(ends.values()) == episodes
        assert ends["failed"] > episodes // 50
        for name, count in before.items():
            assert after[name] <= count + 16, f"{name}: {count} before, {after[name]} after"
        assert not processes() - running

    assert issubclass(backend_class(backend), Sandbox)
    asyncio.run(main())
