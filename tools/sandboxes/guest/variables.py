"""The session's variables, pickled for a snapshot and loaded into another session."""

from __future__ import annotations

import importlib
import io
import pickle
import types
from typing import Any


class _Import:
    """Stands for a module in a pickle."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self._name,)


class _Elsewhere(pickle.Unpickler):
    """Loads only what could be loaded in another session, where nothing is defined yet."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__":
            raise pickle.UnpicklingError("defined in the session: " + name)
        return super().find_class(module, name)


def dump_variables(namespace: dict[str, Any]) -> tuple[bytes, list[str]]:
    """A pickle of what can be pickled, and the names of what cannot, e.g. functions."""
    kept: dict[str, Any] = {}
    dropped = []
    for name, value in list(namespace.items()):
        if name.startswith("__"):
            continue
        try:
            if isinstance(value, types.ModuleType):
                value = _Import(value.__name__)
            _Elsewhere(io.BytesIO(pickle.dumps(value))).load()
            kept[name] = value
        except BaseException:
            dropped.append(name[:100])
    # All at once, so that what two variables share stays shared.
    return pickle.dumps(kept), dropped[:100]


def load_variables(data: bytes, namespace: dict[str, Any]) -> str:
    """Put them into a namespace; "" or why they cannot be."""
    try:
        namespace.update(pickle.loads(data))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
