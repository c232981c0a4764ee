"""What is special to the namespace backend: who it runs as, what it leaves, who killed it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palestra.tools.sandboxes import Guarantee, Limits, SandboxDied, SandboxSpec, control_groups
from palestra.tools.sandboxes.namespace import NamespaceSandbox
from palestra.tools.sandboxes.zygote_process import zygote_for
from palestra.types import Failure

SPEC = SandboxSpec(backend="namespace", packages=())

pytestmark = pytest.mark.skipif(
    not NamespaceSandbox.capabilities(SPEC).available and not os.environ.get("CI"),
    reason=NamespaceSandbox.capabilities(SPEC).problem,
)


def host_pid(sandbox: NamespaceSandbox) -> int:
    lines = Path(f"/proc/self/fdinfo/{sandbox._pidfd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


async def started(spec: SandboxSpec = SPEC) -> NamespaceSandbox:
    sandbox = NamespaceSandbox(spec)
    await sandbox.start()
    return sandbox


def wait_until(condition: object, timeout_s: float = 10.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(os.getuid() != 0, reason="only root could be the host's root inside")
def test_what_root_starts_is_a_dedicated_user_on_the_host() -> None:
    async def main() -> None:
        sandbox = await started()
        await sandbox.python("import subprocess; p = subprocess.Popen(['sleep', '60'])")
        owners = {os.stat(f"/proc/{pid}").st_uid for pid in descendants(host_pid(sandbox))}
        await sandbox.kill()
        assert len(owners) == 1
        assert owners.isdisjoint({0, os.getuid()})

    asyncio.run(main())


def descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text()
                parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [pid]
    for known in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == known]
    return found


def test_two_sandboxes_of_one_zygote_share_no_namespace() -> None:
    async def main() -> None:
        first, second = await started(), await started()
        names = ("user", "mnt", "pid", "net", "ipc", "uts")
        seen = [
            {name: os.readlink(f"/proc/{host_pid(s)}/ns/{name}") for name in names}
            for s in (first, second)
        ]
        host = {name: os.readlink(f"/proc/self/ns/{name}") for name in names}
        await first.kill()
        await second.kill()
        for name in names:
            assert len({seen[0][name], seen[1][name], host[name]}) == 3

    asyncio.run(main())


def test_a_kill_from_outside_is_a_failure_and_an_exhaustion_is_not() -> None:
    async def main() -> None:
        sandbox = await started()
        os.kill(host_pid(sandbox), signal.SIGKILL)
        with pytest.raises(Failure, match="killed from outside") as failure:
            await sandbox.python("1")
        assert failure.value.cause == "sandbox:namespace"
        short_lived = await started(
            SandboxSpec(backend="namespace", packages=(), limits=Limits(wall_s=1))
        )
        with pytest.raises(SandboxDied, match="1 s of life are over"):
            await short_lived.run("sleep 10")

    asyncio.run(main())


def test_the_end_of_the_zygote_is_a_failure_and_the_next_sandbox_gets_another() -> None:
    async def main() -> None:
        sandbox = await started()
        pid = host_pid(sandbox)
        zygote_for(SPEC)._warden.kill()
        assert wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
        with pytest.raises(Failure, match="zygote is gone"):
            await sandbox.python("1")
        another = await started()
        assert (await another.python("1 + 1")).value == "2"
        await another.kill()

    asyncio.run(main())


def test_memory_of_all_processes_together_is_held() -> None:
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        held = bytearray(60 << 20)
        for i in range(0, len(held), 4096):
            held[i] = 1
        time.sleep(30)
        os._exit(0)
time.sleep(1.5)
import subprocess
alive = 0
for name in os.listdir('/proc'):
    if name.isdigit() and int(name) > 2:
        try:
            alive += int(open(f'/proc/{name}/statm').read().split()[1]) > (50 << 8)
        except OSError:
            pass
alive
"""

    async def main() -> None:
        spec = SandboxSpec(
            backend="namespace", packages=(), limits=Limits(memory_mb=200, disk_mb=1)
        )
        sandbox = await started(spec)
        result = await sandbox.python(code, timeout_s=20)
        await sandbox.kill()
        assert result.ended in ("memory", "died") or int(result.value) <= 3

    asyncio.run(main())


def test_memory_is_held_without_control_groups_too() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__),
            *("-k", "memory_of_all_processes"),
        ],
        env={**os.environ, "PALESTRA_CONTROL_GROUPS": "off"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


_OWNER = """
import asyncio, json
from palestra.tools.sandboxes import SandboxSpec
from palestra.tools.sandboxes.namespace import NamespaceSandbox
from palestra.tools.sandboxes.zygote_process import zygote_for

async def main():
    spec = SandboxSpec(backend="namespace", packages=())
    pids, sandboxes = [], []
    for _ in range(3):
        sandbox = NamespaceSandbox(spec)
        sandboxes.append(sandbox)
        await sandbox.start()
        await sandbox.python(
            "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
        )
        text = open(f"/proc/self/fdinfo/{sandbox._pidfd}").read()
        pids.append(int(text.split("Pid:")[1].split()[0]))
    zygote = zygote_for(spec)
    groups = [str(path) for path in zygote.groups.paths] if zygote.groups else []
    print(json.dumps({"pids": pids, "warden": zygote._warden.pid, "groups": groups}), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_an_owner_that_ends(end: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout is not None
    found = json.loads(owner.stdout.readline())
    everyone = [pid for first in found["pids"] for pid in descendants(first)]
    assert len(everyone) >= 9  # first process, session and sleeper of each
    owner.send_signal(end)
    owner.wait(20)
    owner.stdout.close()
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in everyone))
    assert wait_until(lambda: not os.path.exists(f"/proc/{found['warden']}"))
    assert not any(os.path.exists(path) for path in found["groups"])


def test_nothing_outlives_a_warden_that_is_killed() -> None:
    async def main() -> list[int]:
        sandbox = await started()
        pids = descendants(host_pid(sandbox))
        zygote_for(SPEC)._warden.kill()
        assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
        await sandbox.kill()
        return pids

    assert asyncio.run(main())


def test_sandboxes_of_one_zygote_do_not_share_their_variables() -> None:
    async def main() -> None:
        secret = SandboxSpec(backend="namespace", packages=(), env=(("SECRET", "4711"),))
        seen = []
        for spec in (secret, SPEC):
            sandbox = await started(spec)
            seen.append((await sandbox.python("import os; os.environ.get('SECRET')")).value)
            seen.append((await sandbox.run("echo $SECRET")).stdout)
            await sandbox.kill()
        assert seen == ["'4711'", "4711\n", "", "\n"]

    asyncio.run(main())


def test_an_owner_that_closes_no_pool_ends_without_a_warning() -> None:
    code = """
import asyncio
from palestra.tools.sandboxes import SandboxSpec
from palestra.tools.sandboxes.pool import pool_of

async def main():
    pool = pool_of(SandboxSpec(backend="namespace", packages=(), warm=1))
    sandbox = await pool.acquire()
    print((await sandbox.python("1 + 1")).value)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)


@pytest.mark.skipif(control_groups.writable_hierarchy() is None, reason="no control groups here")
def test_every_process_is_in_the_control_group() -> None:
    async def main() -> None:
        sandbox = await started()
        await sandbox.python("import subprocess; p = subprocess.Popen(['sleep', '60'])")
        pids = set(descendants(host_pid(sandbox)))
        assert sandbox._group is not None
        assert len(pids) == 3  # first process, session and sleeper
        for folder in sandbox._group.folders.values():
            assert pids == set(map(int, (folder / "cgroup.procs").read_text().split()))
        await sandbox.kill()

    asyncio.run(main())


@pytest.mark.skipif(control_groups.writable_hierarchy() is None, reason="no control groups here")
def test_the_processor_share_is_held() -> None:
    code = """
import time
began, used = time.monotonic(), time.process_time()
while time.process_time() - used < 0.3:
    pass
time.monotonic() - began
"""

    async def main() -> None:
        spec = SandboxSpec(backend="namespace", packages=(), limits=Limits(cpus=0.25))
        assert Guarantee.CPU in NamespaceSandbox.capabilities(spec).guarantees
        sandbox = await started(spec)
        seconds = float((await sandbox.python(code)).value)
        await sandbox.kill()
        assert seconds > 0.8

    asyncio.run(main())


def test_a_missing_image_is_named() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="no root file system or image archive at /nowhere"):
            await started(SandboxSpec(backend="namespace", image="/nowhere"))

    asyncio.run(main())
