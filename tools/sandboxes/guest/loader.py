"""The head of a bundle: imports modules from texts instead of files."""

from __future__ import annotations

import gc
import importlib
import marshal
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

# Of CPython's allocator: how large the pools are that it divides into blocks of one size, where the
# first block is, and up to which size there are pools.
POOL_BYTES = 1 << 14
FIRST_BLOCK = 48
LARGEST_BLOCK = 512
BYTES_OVERHEAD = 33
MOST_HOLES = 4000


class Loader:
    """Imports modules from their sources, then takes them out of sight again.

    The code in the sandbox shall find neither these modules nor the stubs of their parents, which
    would shadow an installed palestra.
    """

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources
        self._codes: dict[str, bytes] = {}
        self._fillers: list[object] = []
        self._packages: set[str] = set()
        for name in sources:
            parts = name.split(".")[:-1]
            self._packages.update(".".join(parts[: count + 1]) for count in range(len(parts)))

    def load(self, name: str) -> types.ModuleType:
        """The module of that full name."""
        sys.meta_path.insert(0, self)
        try:
            return importlib.import_module(name)
        finally:
            sys.meta_path.remove(self)
            for known in [known for known in sys.modules if self._has(known)]:
                del sys.modules[known]

    def load_densely(self, name: str, others: Sequence[str]) -> types.ModuleType:
        """The same, with what these modules consist of side by side in memory.

        A process that was cloned gets a copy of every page that it writes to, and to use an object
        is to write to its count of references. So what is used shall not lie scattered among what
        is not: `others`, the modules of the standard library, are imported before.
        """
        for module, source in self._sources.items():
            self._codes[module] = marshal.dumps(_compile(module, source))
        for other in others:
            importlib.import_module(other)
        self._fillers += fill_holes()
        return self.load(name)

    def _has(self, name: str) -> bool:
        return name in self._sources or name in self._packages

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """As `sys.meta_path` wants it."""
        if not self._has(name):
            return None
        is_package = name in self._packages
        return ModuleSpec(name, self, is_package=is_package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        """The default one."""
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Run its source."""
        name = module.__name__
        if name in self._codes:
            code = marshal.loads(self._codes[name])
        else:
            code = _compile(name, self._sources.get(name, ""))
        exec(code, module.__dict__)


def _compile(name: str, source: str) -> types.CodeType:
    return compile(source, "<" + name + ">", "exec", dont_inherit=True)


def fill_holes() -> list[object]:
    """Take the free memory between objects; those made next come to lie side by side.

    What is returned must be kept. With another allocator it is of no use, and does no harm.
    """
    fillers: list[object] = []
    gc.collect()
    for size in range(16, LARGEST_BLOCK + 1, 16):
        last, in_line = 0, 0
        for number in range(MOST_HOLES):
            filler = _object_of(size, number)
            fillers.append(filler)
            in_line = in_line + 1 if id(filler) - last == size else 0
            last = id(filler)
            # Blocks one after the other from its very first: a pool that nothing else is in.
            if in_line >= 3 and (last - FIRST_BLOCK) % POOL_BYTES == 3 * size:
                break
    return fillers


def _object_of(size_bytes: int, number: int) -> object:
    if size_bytes == 16:
        return object()
    return float(number) if size_bytes == 32 else bytes(size_bytes - BYTES_OVERHEAD)
