"""Lets SGLang be imported without its CUDA kernels: stands in for packages that have no CPU build.

`make sglang` has its environment import this file whenever Python starts there. The packages in
`ABSENT` can then be imported and their names looked up, but whatever is called, or made an instance
of, raises. Standard library only. For tests: SGLang does not support such an installation.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

ABSENT = ("sgl_kernel", "torchvision")


class _Name(type):
    """Any name of an absent package: a class, so that annotations and base classes accept it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _make_name(f"{cls.__module__}.{cls.__qualname__}", name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{cls.__module__}.{cls.__qualname__} was called, but it is a stub")


def _make_name(module: str, name: str) -> Any:
    return _Name(name, (), {"__module__": module})


class _Module(types.ModuleType):
    __version__ = "0.0"  # older than whatever anybody asks for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _make_name(self.__name__, name)
        setattr(self, name, made)
        return made


class _Finder:
    """Finds every module of the absent packages; it comes last, so installed ones win."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in ABSENT:
            return None
        return importlib.machinery.ModuleSpec(name, _Loader(), is_package=True)


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


sys.meta_path.append(_Finder())
