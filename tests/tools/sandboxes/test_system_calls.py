from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from palestra.tools.sandboxes.system_calls import NUMBERS


@pytest.mark.parametrize("machine", sorted(NUMBERS))
def test_no_number_has_two_names(machine: str) -> None:
    assert len(set(NUMBERS[machine].values())) == len(NUMBERS[machine])


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("getpid", 39, 172),
        ("ptrace", 101, 117),
        ("prctl", 157, 167),
        ("execve", 59, 221),
        ("openat", 257, 56),
        ("statx", 332, 291),
        ("rseq", 334, 293),
        ("socket", 41, 198),
        ("fcntl", 72, 25),
        ("mmap", 9, 222),
        ("wait4", 61, 260),
        ("kexec_file_load", 320, 294),
        ("io_uring_setup", 425, 425),
        ("clone3", 435, 435),
        ("mseal", 462, 462),
        ("listns", 470, 470),
    ],
)
def test_numbers_are_linux_s(name: str, x86_64: int, aarch64: int) -> None:
    assert (NUMBERS["x86_64"][name], NUMBERS["aarch64"][name]) == (x86_64, aarch64)


def test_numbers_agree_with_this_machine_s_headers() -> None:
    machine = platform.machine()
    header = Path(f"/usr/include/{machine}-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip(f"no {header} (Debian: apt-get install linux-libc-dev)")
    defined = re.findall(r"#define __NR_(\w+)\s+(\d+)", header.read_text())
    assert len(defined) > 250
    known = NUMBERS[machine]
    assert {name: int(number) for name, number in defined if name in known} == {
        name: known[name] for name, _ in defined if name in known
    }
