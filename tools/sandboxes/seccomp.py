"""The policy for system calls as a BPF program and as Docker's seccomp profile."""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator
from itertools import product
from typing import Any

from palestra.tools.sandboxes.seccomp_policy import ABSENT, ALLOWED, CHECKED, ENOSYS, EPERM, Check
from palestra.tools.sandboxes.system_calls import NUMBERS

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _AND, _EQUAL, _AT_LEAST, _JUMP, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x05, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16  # of struct seccomp_data
_LONGEST_JUMP = 255

Instruction = tuple[int, int, int, int]  # code, steps to skip if true, if false, operand
Program = tuple[Instruction, ...]


def filter_program(architecture: str | None = None) -> bytes:
    """The policy as an array of struct sock_filter for `kernel.load_filter`; None: this machine's.

    A system call of another architecture kills the process. Numbers beyond the table, x32's
    among them, answer ENOSYS, so that programs of tomorrow fall back to what is there.

    Raises:
        ValueError: an architecture whose numbers are not known.
    """
    architecture = architecture or platform.machine()
    if architecture not in NUMBERS:
        raise ValueError(
            f'no numbers of system calls for "{architecture}": run sandboxes on '
            f"{' or '.join(NUMBERS)}"
        )
    program = (
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_EQUAL, 1, 0, _AUDIT_ARCHITECTURES[architecture]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        *_search(_ranges(NUMBERS[architecture])),
    )
    return b"".join(
        struct.pack("<HBBI", code, if_true, if_false, operand)
        for code, if_true, if_false, operand in program
    )


def _ranges(numbers: dict[str, int]) -> list[tuple[int, Program]]:
    """What to do from each number on, where that changes, from 0."""
    names = {number: name for name, number in numbers.items()}
    ranges: list[tuple[int, Program]] = []
    for number in range(max(names) + 2):
        todo = _verdict(names.get(number, "")) if number <= max(names) else _refusal(ENOSYS)
        if not ranges or todo != ranges[-1][1]:
            ranges.append((number, todo))
    return ranges


def _verdict(name: str) -> Program:
    if name in CHECKED:
        steps = [step for check in CHECKED[name] for step in _examine(check)]
        return (*steps, (_RETURN, 0, 0, _ALLOW))
    if name in ALLOWED:
        return ((_RETURN, 0, 0, _ALLOW),)
    return _refusal(ENOSYS if name in ABSENT else EPERM)


def _refusal(errno: int) -> Program:
    return ((_RETURN, 0, 0, _ERRNO | errno),)


def _examine(check: Check) -> Program:
    """Return the errno, or go on to what follows."""
    steps: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * check.argument)]
    if check.mask != 0xFFFFFFFF:
        steps.append((_AND, 0, 0, check.mask))
    for left, value in zip(reversed(range(len(check.values))), check.values, strict=True):
        if check.refused:
            steps.append((_EQUAL, left, 0 if left else 1, value))
        else:
            steps.append((_EQUAL, left + 1, 0, value))
    return (*steps, *_refusal(check.errno))


def _search(ranges: list[tuple[int, Program]]) -> Program:
    """A binary search for the range of the loaded number."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    if len(below) <= _LONGEST_JUMP:
        return ((_AT_LEAST, len(below), 0, ranges[middle][0]), *below, *above)
    return (
        (_AT_LEAST, 0, 1, ranges[middle][0]),
        (_JUMP, 0, 0, len(below)),
        *below,
        *above,
    )


def docker_profile() -> dict[str, Any]:
    """The policy as Docker's seccomp profile, for `--security-opt seccomp=FILE` in JSON.

    It says yes and no to the same calls as `filter_program`. Docker knows no order among rules, so
    none overlap, and no rule for "anything but these values": `_others` spells that out.
    """
    rules = [
        _rule(sorted(ALLOWED), allow=True),
        _rule(sorted(ABSENT), errno=ENOSYS),
    ]
    for name, checks in CHECKED.items():
        rules.extend(
            _rule([name], *patterns, allow=True)
            for patterns in product(*(_patterns(check, allowed=True) for check in checks))
        )
        rules.extend(
            _rule([name], pattern, errno=check.errno)
            for check in checks
            if check.errno != EPERM
            for pattern in _patterns(check, allowed=False)
        )
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "archMap": [
            {"architecture": f"SCMP_ARCH_{architecture.upper()}", "subArchitectures": []}
            for architecture in NUMBERS
        ],
        "syscalls": rules,
    }


Pattern = tuple[int, int, int]  # argument, mask, value


def _rule(
    names: list[str], *patterns: Pattern, allow: bool = False, errno: int = EPERM
) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names}
    if patterns:  # all of which must match
        rule["args"] = [
            {"index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
            for argument, mask, value in patterns
        ]
    if allow:
        return {**rule, "action": "SCMP_ACT_ALLOW"}
    return {**rule, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}


def _patterns(check: Check, *, allowed: bool) -> list[Pattern]:
    """What matches the arguments that a check allows, or those that it refuses."""
    if allowed is not check.refused:
        return [(check.argument, check.mask, value) for value in check.values]
    others = _others(set(check.values), check.mask)
    return [(check.argument, mask, value) for mask, value in others]


def _others(
    values: set[int], free: int, fixed: int = 0, prefix: int = 0
) -> Iterator[tuple[int, int]]:
    """Masks and values that together match all that begins with `prefix` but no one of `values`.

    `free` are the bits still open, those of `fixed` are as in `prefix`.
    """
    if not values:
        yield fixed, prefix
        return
    if not free:
        return
    bit = 1 << (free.bit_length() - 1)
    for chosen in (0, bit):
        yield from _others(
            {value for value in values if value & bit == chosen},
            free & ~bit,
            fixed | bit,
            prefix | chosen,
        )
