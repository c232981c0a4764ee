"""Which backend serves an environment here: the first that works and makes every promise."""

from __future__ import annotations

import importlib

from palestra.tools.sandboxes.limits import Capabilities, Guarantee
from palestra.tools.sandboxes.sandbox import Sandbox
from palestra.tools.sandboxes.spec import BACKENDS, SandboxSpec

_CLASSES = {
    "namespace": "NamespaceSandbox",
    "landlock": "LandlockSandbox",
    "docker": "DockerSandbox",
    "unsafe": "UnsafeSandbox",
}


def backend_class(name: str) -> type[Sandbox]:
    """The class of a backend, imported when first asked for."""
    module = importlib.import_module(f"palestra.tools.sandboxes.{name}")
    found: type[Sandbox] = getattr(module, _CLASSES[name])
    return found


def all_capabilities(spec: SandboxSpec) -> list[Capabilities]:
    """What every backend offers here for such a sandbox, in the order of preference."""
    return [backend_class(name).capabilities(spec) for name in BACKENDS]


def required_of(spec: SandboxSpec) -> frozenset[Guarantee]:
    """What a backend must promise; a list of hosts to reach replaces "no network"."""
    if not spec.limits.network:
        return spec.requires
    return spec.requires - {Guarantee.NETWORK_OFF} | {Guarantee.NETWORK_ALLOW_LIST}


def choose(spec: SandboxSpec) -> type[Sandbox]:
    """The backend for this specification.

    A backend asked for by name must make every promise, too, except "unsafe", whose name says that
    it makes none.

    Raises:
        ValueError: none will do; one line names what is missing in each, with the remedy.
    """
    required = required_of(spec)
    if spec.backend == "unsafe":
        return backend_class("unsafe")
    names = [name for name in BACKENDS if name != "unsafe"]
    problems = []
    for name in names if spec.backend == "auto" else [spec.backend]:
        backend = backend_class(name)
        offered = backend.capabilities(spec)
        missing = offered.missing(required)
        if offered.available and not missing:
            return backend
        problems.append(f"{name}: {offered.problem or 'does not guarantee ' + ', '.join(missing)}")
    raise ValueError(
        f"no sandbox here gives what is required. {'; '.join(problems)}. Ask for less with "
        'SandboxSpec(requires=…), or for none with backend="unsafe"'
    )
