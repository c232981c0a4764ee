"""The head of a bundle: imports modules from texts instead of files."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec


class Loader:
    """Imports modules from their sources, then takes them out of sight again.

    The code in the sandbox shall find neither these modules nor the stubs of their parents, which
    would shadow an installed palestra.
    """

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources
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
        code = compile(self._sources.get(name, ""), "<" + name + ">", "exec", dont_inherit=True)
        exec(code, module.__dict__)
