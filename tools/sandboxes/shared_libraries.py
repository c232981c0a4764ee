"""Which shared libraries programs and extension modules load, as the host's loader finds them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# "libc.so.6 => /lib/libc.so.6 (0x7f...)", or "/lib64/ld-linux-x86-64.so.2 (0x7f...)"
_LOADED = re.compile(r"^\t(?:(\S+) => )?(/.*) \(0x[0-9a-f]+\)$")
_FILES_PER_CALL = 200


def is_elf(file: Path) -> bool:
    """Whether it is a program, library or extension module in the ELF format."""
    with file.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def shared_libraries(files: Iterable[Path]) -> dict[str, Path]:
    """The libraries that these ELF files load, and those that these load: name -> file.

    The name is the one that a file asks for; the loader itself goes by its whole path. A library
    that the host lacks too is left out: what needs it fails in the sandbox as it does here.

    Raises:
        ValueError: there is no `ldd`.
    """
    waiting = sorted(map(str, files))
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    libraries: dict[str, Path] = {}
    for start in range(0, len(waiting), _FILES_PER_CALL):
        command = ["ldd", *waiting[start : start + _FILES_PER_CALL]]
        try:
            # Its status is 1 if one of the files is linked statically.
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**environment, "LC_ALL": "C"},
            )
        except FileNotFoundError:
            raise ValueError(
                "building a root file system needs the program ldd (Debian: apt-get install "
                "libc-bin)"
            ) from None
        for line in result.stdout.splitlines():
            if match := _LOADED.match(line):
                file = Path(os.path.normpath(match[2]))  # "$ORIGIN/../lib" is printed as it stands
                libraries.setdefault(match[1] or str(file), file)
    return libraries
