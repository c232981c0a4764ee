"""Makes one text of the modules in guest/, for the Python session of a sandbox."""

from __future__ import annotations

import importlib.util
import marshal
from functools import cache
from pathlib import Path

_GUEST = "palestra.verifiers.code.guest."
# The program shall find none of the modules, so they are taken out of sight again.
_LOAD = """
import importlib.util, marshal, sys, types
for name, source, compiled in modules:
    module = sys.modules[name] = types.ModuleType(name)
    if importlib.util.MAGIC_NUMBER == magic:
        exec(marshal.loads(compiled), module.__dict__)
    else:
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
for name, source, compiled in modules:
    del sys.modules[name]
del magic, modules, name, source, compiled
"""


@cache
def bundle(*names: str) -> str:
    """Code that makes the last of these modules `module`; each may import those before it.

    They come as source and, because a fresh sandbox has other things to do, as byte code for
    Pythons like this one.
    """
    modules = []
    for module in (_GUEST + name for name in names):
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        compiled = compile(source, module, "exec", dont_inherit=True)
        modules.append((module, source, marshal.dumps(compiled)))
    return f"magic, modules = {importlib.util.MAGIC_NUMBER!r}, {modules!r}\n{_LOAD}"
