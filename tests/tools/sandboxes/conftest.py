"""Sandboxes of every backend that works here; in CI every backend must."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from palestra.tools.sandboxes import Sandbox, SandboxSpec
from palestra.tools.sandboxes.choose import backend_class

SPECS = {
    "unsafe": SandboxSpec(backend="unsafe", packages=()),
    "namespace": SandboxSpec(backend="namespace", packages=()),
    "landlock": SandboxSpec(backend="landlock", packages=()),
    "docker": SandboxSpec(backend="docker", packages=()),
    "docker-runsc": SandboxSpec(
        # gVisor's own threads count as processes: with few of them it crashes (SANDBOX.md).
        backend="docker",
        runtime="runsc",
        packages=(),
    ),
}
# In the environment of this process before any sandbox, or what starts them, is there.
CANARY = "canary-" + secrets.token_hex(8)
os.environ["PALESTRA_CANARY"] = CANARY


@pytest.fixture
def canary() -> str:
    """What stands in the environment of this process and must be in no sandbox."""
    return CANARY


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> SandboxSpec:
    """What to start. Skipped where the backend does not work, but not in CI."""
    return _available(request.param)


@pytest.fixture
def available() -> Callable[[str], SandboxSpec]:
    """The same for a backend by name."""
    return _available


def _available(name: str) -> SandboxSpec:
    """The specification of that name, of a backend that works here."""
    spec = SPECS[name]
    offered = backend_class(spec.backend).capabilities(spec)
    if not offered.available:
        if os.environ.get("CI"):
            pytest.fail(f"{name} must work in CI: {offered.problem}")
        pytest.skip(f"{name}: {offered.problem}")
    return spec


@pytest.fixture
def start() -> Iterator[Callable[..., Sandbox]]:
    """Starts sandboxes, which are killed after the test."""
    started: list[Sandbox] = []

    def start_one(spec: SandboxSpec, **limits: Any) -> Sandbox:
        if limits:
            spec = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, **limits))
        sandbox = backend_class(spec.backend)(spec)
        started.append(sandbox)
        sandbox.sync.start()
        return sandbox

    yield start_one
    for sandbox in started:
        sandbox.sync.kill()


@pytest.fixture
def sandbox(spec: SandboxSpec, start: Callable[..., Sandbox]) -> Sandbox:
    """A started sandbox, for this test alone."""
    return start(spec)
