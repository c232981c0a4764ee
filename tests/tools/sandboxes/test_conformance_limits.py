"""Every backend: what `capabilities` promises is held, what stays within limits is served."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from palestra.tools.sandboxes import SAFE, ExecResult, Guarantee, Sandbox, SandboxDied, SandboxSpec
from palestra.tools.sandboxes.choose import all_capabilities, backend_class, choose

Start = Callable[..., Sandbox]

HOLD_MEMORY = """
import os, sys, time
count, mb = int(sys.argv[1]), int(sys.argv[2])
readers = []
for _ in range(count):
    reader, writer = os.pipe()
    if os.fork() == 0:
        held = b"x" * (mb << 20)
        os.write(writer, b"up")
        time.sleep(1.5)
        os.write(writer, b"!")
        os._exit(0)
    os.close(writer)
    readers.append(reader)
time.sleep(1.5)
lived = 0
for reader in readers:
    said = b""
    while part := os.read(reader, 10):
        said += part
    lived += said.endswith(b"!")
print(lived)
"""


def skip_unless(spec: SandboxSpec, guarantee: Guarantee) -> None:
    if guarantee not in backend_class(spec.backend).capabilities(spec).guarantees:
        pytest.skip(f"{spec.backend} does not promise {guarantee}")


def test_all_that_is_promised_is_explained(spec: SandboxSpec) -> None:
    offered = backend_class(spec.backend).capabilities(spec)
    assert offered.backend == spec.backend and offered.available
    assert all(text for text in offered.guarantees.values())
    assert offered in all_capabilities(spec)


def test_the_unsafe_backend_promises_no_safety() -> None:
    spec = SandboxSpec(backend="unsafe", packages=())
    assert not SAFE & backend_class("unsafe").capabilities(spec).guarantees.keys()
    assert choose(spec) is backend_class("unsafe")


def test_a_promise_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(ValueError, match="unsafe"):
        choose(SandboxSpec(packages=(), requires=frozenset(Guarantee)))


def test_memory_within_the_limit_is_given(spec: SandboxSpec, start: Start) -> None:
    sandbox = start(spec, memory_mb=256)
    assert sandbox.sync.python("len(b'x' * (150 << 20)) >> 20").value == "150"
    sandbox.sync.write("hold.py", HOLD_MEMORY)
    assert sandbox.sync.run(["python3", "hold.py", "3", "40"]).stdout == "3\n"


def test_one_process_gets_no_more_memory_than_the_limit(spec: SandboxSpec, start: Start) -> None:
    guarantees = backend_class(spec.backend).capabilities(spec).guarantees
    if not {Guarantee.MEMORY_PER_PROCESS, Guarantee.MEMORY_TOTAL} & guarantees.keys():
        pytest.skip(f"{spec.backend} does not limit memory")
    sandbox = start(spec, memory_mb=128)
    try:
        result = sandbox.sync.python("x = b'x' * (400 << 20)\nprint('got it')")
    except SandboxDied:
        return
    assert "got it" not in result.output
    assert "MemoryError" in result.error or result.died
    assert sandbox.sync.run("echo on").stdout == "on\n"


def test_all_processes_together_get_no_more_memory_than_the_limit(
    spec: SandboxSpec, start: Start
) -> None:
    skip_unless(spec, Guarantee.MEMORY_TOTAL)
    # Files in memory may be counted with it, and then have room of their own.
    sandbox = start(spec, memory_mb=256, disk_mb=8)
    sandbox.sync.write("hold.py", HOLD_MEMORY)
    try:
        result = sandbox.sync.run(["python3", "hold.py", "8", "80"])
    except SandboxDied:
        return
    lived = int(result.stdout.strip() or 0)
    assert lived * 80 <= 256


def test_processes_within_the_limit_are_given_and_no_more(spec: SandboxSpec, start: Start) -> None:
    sandbox = start(spec, processes=48)
    count = """
import os, time
pids = []
try:
    for _ in range({}):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        pids.append(pid)
except OSError as error:
    print(error.strerror)
for pid in pids:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
len(pids)"""
    assert sandbox.sync.python(count.format(24)).value == "24"
    skip_unless(spec, Guarantee.PROCESSES)
    try:
        result = sandbox.sync.python(count.format(400))
    except SandboxDied:
        return
    assert int(result.value) <= 48
    assert sandbox.sync.run("echo on").stdout == "on\n"


def fill(sandbox: Sandbox, folder: str, mb: int) -> ExecResult:
    """Write files of a megabyte until it is refused."""
    return sandbox.sync.run(
        f"for i in $(seq {mb}); do head -c 1M /dev/zero > {folder}/fill-$i || break; done; "
        f"du -sk {folder}; rm -f {folder}/fill-*"
    )


def test_disk_within_the_limit_is_given_and_no_more(spec: SandboxSpec, start: Start) -> None:
    sandbox = start(spec, disk_mb=32)
    result = fill(sandbox, ".", 20)
    assert int(result.stdout.split()[0]) >= 20 << 10, result
    skip_unless(spec, Guarantee.DISK)
    for folder in (".", "/tmp"):
        try:
            result = fill(sandbox, folder, 100)
        except SandboxDied:
            return
        assert int(result.stdout.split()[0]) <= 34 << 10, result
    assert sandbox.sync.run("echo on").stdout == "on\n"


def test_entries_within_the_limit_are_given_and_no_more(spec: SandboxSpec, start: Start) -> None:
    sandbox = start(spec, inodes=512)
    make = "import os\nfor i in range({}): open(f'i{{i}}', 'w').close()"
    count = "import os; len(os.listdir())"
    assert sandbox.sync.python(make.format(300)).error == ""
    assert sandbox.sync.python(count).value == "300"
    skip_unless(spec, Guarantee.INODES)
    try:
        sandbox.sync.python(make.format(4000))
        assert int(sandbox.sync.python(count).value) <= 520
    except SandboxDied:
        return
    assert sandbox.sync.run("rm -f i*; echo on").stdout == "on\n"


def test_a_share_of_the_processor_is_kept(spec: SandboxSpec, start: Start) -> None:
    skip_unless(spec, Guarantee.CPU)
    if Guarantee.OWN_KERNEL in backend_class(spec.backend).capabilities(spec).guarantees:
        pytest.skip("its kernel counts processor time in a way of its own")
    sandbox = start(spec, cpus=0.2)
    code = """
import time
began, used = time.monotonic(), time.process_time()
while time.monotonic() - began < 2:
    pass
(time.process_time() - used) / (time.monotonic() - began)"""
    sandbox.sync.python("1 + 1")
    assert float(sandbox.sync.python(code).value) < 0.4
