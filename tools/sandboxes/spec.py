"""`SandboxSpec`: which sandbox an environment wants."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from palestra.tools.sandboxes.limits import SAFE, Guarantee, Limits

# In the order in which "auto" tries them. "unsafe" is never chosen, only asked for by name.
BACKENDS = ("namespace", "landlock", "docker", "unsafe")
DEFAULT_PACKAGES = ("numpy", "pandas", "sympy", "pytest")


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxSpec:
    """What to start: a backend, its limits, what it must guarantee and what is inside.

    `backend` is one of `BACKENDS` or "auto": the first that works here and makes every promise in
    `requires`. `image` is what it starts from: None for the root file system (or image) that
    palestra builds with `packages` of PyPI inside, else a folder or OCI archive ("namespace",
    "landlock"), or the name of an image ("docker"). `preload` are modules imported before the
    first call, once for all sandboxes where the backend can. `runtime` is Docker's: "runc" or
    "runsc" (gVisor). `warm` sandboxes are kept ready, at most `max_live` live at once.

    Raises:
        ValueError: an unknown backend or runtime, or a number out of range.
    """

    backend: str = "auto"
    limits: Limits = field(default_factory=Limits)
    requires: frozenset[Guarantee] = SAFE
    image: str | None = None
    packages: tuple[str, ...] = DEFAULT_PACKAGES
    preload: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    runtime: str = "runc"
    warm: int = 2
    max_live: int = 64

    def __post_init__(self) -> None:
        if self.backend not in (*BACKENDS, "auto"):
            raise ValueError(
                f'unknown sandbox backend "{self.backend}": use auto, {", ".join(BACKENDS)}'
            )
        if self.runtime not in ("runc", "runsc"):
            raise ValueError(f'runtime is "runc" or "runsc" (gVisor), got "{self.runtime}"')
        if self.max_live < 1 or not 0 <= self.warm <= self.max_live:
            raise ValueError(
                f"a pool has 0 <= warm <= max_live with max_live at least 1, got warm={self.warm}, "
                f"max_live={self.max_live}"
            )
        object.__setattr__(self, "requires", frozenset(map(Guarantee, self.requires)))

    def on(self, backend: str) -> SandboxSpec:
        """The same for one backend."""
        return dataclasses.replace(self, backend=backend)
