"""Makes one text of the modules in guest/, for the Python session of a sandbox."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

_GUEST = "palestra.verifiers.code.guest."
_LOADER = "palestra.tools.sandboxes.guest.loader"


@cache
def bundle(*names: str) -> str:
    """Code that makes the first of these modules `module`; the others are what it imports."""
    modules = [_GUEST + name for name in names]
    sources = {module: _source_of(module) for module in (*modules, _LOADER)}
    return (
        f"names = {{}}\nsources = {sources!r}\n"
        f"exec(sources[{_LOADER!r}], names)\n"
        f"module = names['Loader'](sources).load({modules[0]!r})\n"
        "del names, sources\n"
    )


def _source_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")
