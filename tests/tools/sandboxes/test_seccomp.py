"""The policy as numbers, evaluated here, and in the kernel, in children that load the filter."""

from __future__ import annotations

import errno
import inspect
import json
import platform
import re
import signal
import struct
import subprocess
import sys
from itertools import product

import pytest

from palestra.tools.sandboxes import kernel, seccomp
from palestra.tools.sandboxes.seccomp_policy import ABSENT, ALLOWED, CHECKED
from palestra.tools.sandboxes.system_calls import NUMBERS

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}
I386, ARM = 0x40000003, 0x40000028
HIGH = 1 << 32  # above what the kernel looks at
both = pytest.mark.parametrize("machine", sorted(AUDIT))
here = platform.machine()
needs_kernel = pytest.mark.skipif(
    sys.platform != "linux" or here not in AUDIT, reason=f"no filter for {sys.platform} on {here}"
)

# (system call, arguments, the errno that it answers, 0 if it passes)
PRETENDED = -1  # success, but nothing is done
CASES = [
    ("clone", (0x11,), 0),  # fork
    ("clone", (0x3D0F00,), 0),  # a thread
    *(
        ("clone", (flag | 0x11,), errno.EPERM)
        for flag in (1 << 17, *(1 << n for n in range(25, 31)))
    ),
    ("clone", (HIGH | 1 << 28,), errno.EPERM),
    ("socket", (1, 1, 0), 0),
    ("socket", (2, 1 | 0x80800, 6), 0),
    ("socket", (10, 2, 17), 0),
    ("socket", (HIGH | 2, 1, 0), 0),
    *(
        ("socket", (family, 2, 0), errno.EAFNOSUPPORT)
        for family in (0, *range(3, 10), *range(11, 64), HIGH | 40, (1 << 64) - 1)
    ),
    ("socket", (2, 3, 1), errno.EPERM),  # raw
    ("socket", (2, 3, 6), errno.EPERM),
    ("socket", (2, 5, 0), errno.EPERM),  # sequenced packets: SCTP
    ("socket", (2, 1, 132), errno.EPERM),  # SCTP by its name
    ("socket", (2, 1, 262), errno.EPERM),  # MPTCP
    ("setsockopt", (3, 1, 7), PRETENDED),
    ("setsockopt", (3, 1, HIGH | 7), PRETENDED),
    ("setsockopt", (3, 1, 8), 0),
    ("setsockopt", (3, 6, 1), 0),
    ("socketpair", (1, 1, 0), 0),
    ("socketpair", (1, 5, 0), 0),
    ("socketpair", (2, 1, 0), errno.EAFNOSUPPORT),
    *(("mknodat", (0, 0, kind | 0o644, 0), 0) for kind in (0, 0o010000, 0o100000, 0o140000)),
    *(("mknodat", (0, 0, kind | 0o644, 0), errno.EPERM) for kind in (0o020000, 0o060000)),
    ("mknodat", (0, 0, HIGH | 0o020644, 0), errno.EPERM),
    *(("mknod", (0, kind | 0o644, 0), 0) for kind in (0, 0o010000, 0o100000, 0o140000)),
    *(("mknod", (0, kind | 0o644, 0), errno.EPERM) for kind in (0o020000, 0o060000)),
    ("ioctl", (0, 0x5401), 0),
    ("ioctl", (0, 0x5413), 0),
    ("ioctl", (0, (1 << 64) - 0x7FFBABD0), 0),  # a negative int
    *(("ioctl", (0, request), errno.EPERM) for request in (0x5412, 0x541C, 0x5423)),
    ("ioctl", (0, HIGH | 0x5412), errno.EPERM),
    ("prlimit64", (0, 7, 0, 0), 0),
    ("prlimit64", (1, 0, 0, 0), errno.EPERM),
    ("prctl", (1, 9), 0),  # PR_SET_PDEATHSIG
    ("prctl", (22, 2), 0),  # PR_SET_SECCOMP: stricter still
    ("prctl", (35,), errno.EPERM),
    ("prctl", (HIGH | 35,), errno.EPERM),
    *(("personality", (value,), 0) for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)),
    ("personality", ((1 << 64) - 1,), 0),
    ("personality", (0x0040000,), errno.EPERM),  # ADDR_NO_RANDOMIZE
    ("personality", (0x0400008,), errno.EPERM),
]


PROGRAMS = {machine: seccomp.filter_program(machine) for machine in AUDIT}
PROFILE = seccomp.docker_profile()
RULES = {
    name: [rule for rule in PROFILE["syscalls"] if name in rule["names"]]
    for name in {name for numbers in NUMBERS.values() for name in numbers}
}


def decode(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("<HBBI", program))


def evaluate(program: bytes, machine: int, number: int, arguments: tuple[int, ...]) -> int:
    """What a kernel does with struct seccomp_data: the value that the program returns."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, machine, 0, *padded)
    steps, at, accumulator = decode(program), 0, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        match code:
            case 0x20:
                assert operand % 4 == 0
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                at += operand
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"instruction {code:#x}")


def answer(machine: str, number: int, arguments: tuple[int, ...] = ()) -> int:
    """The errno of a filtered call, 0 if it passes, or PRETENDED."""
    result = evaluate(PROGRAMS[machine], AUDIT[machine], number, arguments)
    if result == 0x7FFF0000:
        return 0
    assert result >> 16 == 0x0005, f"{result:#x} is neither ALLOW nor ERRNO"
    return result & 0xFFFF or PRETENDED


def docker_answer(name: str, arguments: tuple[int, ...]) -> int:
    """The same by Docker's profile; fails if rules contradict each other."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    answers = set()
    for rule in RULES[name]:
        for test in rule.get("args", []):
            assert test["op"] == "SCMP_CMP_MASKED_EQ"
            if padded[test["index"]] & test["value"] != test["valueTwo"]:
                break
        else:
            allowed = rule["action"] == "SCMP_ACT_ALLOW"
            answers.add(0 if allowed else rule["errnoRet"] or PRETENDED)
    assert PROFILE["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(answers) <= 1, f"{name}{arguments} answers {answers}"
    return answers.pop() if answers else PROFILE["defaultErrnoRet"]


@both
def test_programs_are_valid_bpf(machine: str) -> None:
    steps = decode(PROGRAMS[machine])
    assert len(steps) <= 256  # the kernel takes 4096
    for at, (code, if_true, if_false, operand) in enumerate(steps):
        if code == 0x06:
            continue
        farthest = at + 1 + (operand if code == 0x05 else max(if_true, if_false))
        assert farthest < len(steps)
    assert steps[-1][0] == 0x06


@both
def test_allowed_calls_pass(machine: str) -> None:
    numbers = [NUMBERS[machine][name] for name in ALLOWED if name in NUMBERS[machine]]
    assert len(numbers) > 200
    assert [number for number in numbers if answer(machine, number) != 0] == []


@both
def test_every_other_number_is_refused(machine: str) -> None:
    names = {number: name for name, number in NUMBERS[machine].items()}
    last = max(names)
    for number in range(601):
        name = names.get(number, "")
        if name in ALLOWED or name in CHECKED:
            continue
        expected = errno.ENOSYS if name in ABSENT or number > last else errno.EPERM
        assert answer(machine, number) == expected, (number, name)


@both
def test_calls_of_another_architecture_kill_the_process(machine: str) -> None:
    for other in (I386, ARM, AUDIT[OTHER[machine]]):
        assert evaluate(PROGRAMS[machine], other, NUMBERS[machine]["getpid"], ()) == 0x80000000


def test_x32_calls_are_refused() -> None:
    for number in NUMBERS["x86_64"].values():
        assert answer("x86_64", number | 0x40000000) == errno.ENOSYS


@both
@pytest.mark.parametrize(("name", "arguments", "expected"), CASES)
def test_arguments_decide(
    machine: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    if name in NUMBERS[machine]:  # aarch64 has no mknod
        assert answer(machine, NUMBERS[machine][name], arguments) == expected
    assert docker_answer(name, arguments) == expected


def test_every_checked_call_has_cases_of_both_kinds() -> None:
    for name in CHECKED:
        assert {bool(expected) for call, _, expected in CASES if call == name} == {False, True}


@both
def test_docker_profile_and_program_agree(machine: str) -> None:
    for name, number in NUMBERS[machine].items():
        for arguments in samples(name):
            assert docker_answer(name, arguments) == answer(machine, number, arguments), (
                name,
                arguments,
            )


def samples(name: str) -> list[tuple[int, ...]]:
    """Arguments at, one bit beside and far from those that matter."""
    columns: list[list[int]] = [[0]] * 6
    for check in CHECKED.get(name, ()):
        values = set(check.values)
        near = {value ^ 1 << bit for value in values for bit in range(33)}
        wide = name != "socket" or check.argument == 0
        columns[check.argument] = sorted(values | near | {(1 << 64) - 1} if wide else values | {3})
    return list(product(*columns))


def test_docker_profile_is_for_native_calls_only() -> None:
    profile = json.loads(json.dumps(PROFILE))
    assert profile["archMap"] == [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
    ]


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ValueError, match=r'"riscv64".*x86_64 or aarch64'):
        seccomp.filter_program("riscv64")


# In the kernel

LOADER = f"""{inspect.getsource(kernel)}
import sys
load_filter(bytes.fromhex(sys.argv[1]))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def run_filtered(*command: str, program: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """A command under the filter; the interpreter that loads it sees nothing of palestra."""
    loaded = (PROGRAMS[here] if program is None else program).hex()
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", LOADER, loaded, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )


def available(text: str) -> list[str]:
    return [name for name in text.split() if name in NUMBERS.get(here, {})]


FORBIDDEN = available("""
    ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise
    keyctl add_key request_key bpf perf_event_open userfaultfd
    io_uring_setup io_uring_enter io_uring_register
    mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree move_mount
    mount_setattr setns unshare open_by_handle_at name_to_handle_at quotactl quotactl_fd
    fanotify_init lookup_dcookie
    kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff acct
    iopl ioperm modify_ldt vhangup syslog sethostname setdomainname
    settimeofday clock_settime clock_adjtime adjtimex
    mbind set_mempolicy migrate_pages move_pages sync syncfs nfsservctl
""")
SEEMINGLY_ABSENT = available("""
    clone3 memfd_create memfd_secret shmget shmat shmctl semget semop semctl msgget msgsnd msgrcv
    mq_open mq_unlink io_setup io_submit statmount listmount cachestat lsm_list_modules
""")
# Should a filter fail, the kernel itself finds these invalid; unshare(0) does nothing.
ALL_ONES = ((1 << 64) - 1,) * 6
ATTEMPTS = [
    *((name, (0,) if name == "unshare" else ALL_ONES, errno.EPERM) for name in FORBIDDEN),
    *((name, ALL_ONES, errno.ENOSYS) for name in SEEMINGLY_ABSENT),
    *(case for case in CASES if case[2] > 0 and case[0] in NUMBERS.get(here, {})),
]
ATTEMPT = """
import ctypes, json, os, sys
system_call = ctypes.CDLL(None, use_errno=True).syscall
system_call.argtypes = [ctypes.c_long] + [ctypes.c_ulong] * 6
answers, parent = [], os.getpid()
for number, arguments in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    result = system_call(number, *arguments, *[0] * (6 - len(arguments)))
    if os.getpid() != parent:
        os._exit(0)
    answers.append(ctypes.get_errno() if result == -1 else 0)
print(json.dumps(answers))
"""


GROW_BUFFER = """
import socket
end, _ = socket.socketpair()
before = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, before // 4)
print(end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before)
"""
CALL_32_BIT = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000 cd80 c3"))  # getpid: mov eax, 20; int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print("before", flush=True)
print(call())
"""


@pytest.fixture(scope="module")
def kernel_answers() -> list[int]:
    """The errno, or 0, of each of the attempts, all made by one child."""
    calls = json.dumps([(NUMBERS[here][name], arguments) for name, arguments, _ in ATTEMPTS])
    done = run_filtered(sys.executable, "-I", "-S", "-c", ATTEMPT, calls)
    assert done.returncode == 0, done.stderr
    answers: list[int] = json.loads(done.stdout)
    assert len(answers) == len(ATTEMPTS)
    return answers


@needs_kernel
@pytest.mark.parametrize(
    "index", range(len(ATTEMPTS)), ids=[f"{call}-{args[:3]}" for call, args, _ in ATTEMPTS]
)
def test_kernel_refuses(index: int, kernel_answers: list[int]) -> None:
    assert kernel_answers[index] == ATTEMPTS[index][2]


@needs_kernel
def test_filter_and_no_new_privs_stay_with_what_is_started() -> None:
    status = run_filtered("sh", "-c", "cat /proc/self/status").stdout
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)


@needs_kernel
def test_buffers_of_sockets_do_not_grow() -> None:
    done = run_filtered(sys.executable, "-I", "-c", GROW_BUFFER)
    assert done.stdout == "True\n", done.stderr


@needs_kernel
def test_program_of_another_architecture_loads_and_kills() -> None:
    done = run_filtered("true", program=seccomp.filter_program(OTHER[here]))
    assert done.returncode == -signal.SIGSYS


@pytest.mark.skipif(here != "x86_64", reason="32-bit calls of x86")
def test_a_32_bit_call_kills() -> None:
    done = run_filtered(sys.executable, "-I", "-c", CALL_32_BIT)
    # The kernel itself stops it where it has no 32-bit calls.
    assert done.returncode in (-signal.SIGSYS, -signal.SIGSEGV)
    assert done.stdout == "before\n"


@needs_kernel
def test_a_refused_program_is_an_error() -> None:
    done = run_filtered("true", program=b"\xff" * 16)
    assert "OSError: [Errno 22] seccomp: Invalid argument" in done.stderr
