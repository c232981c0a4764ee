"""What the tests of the code verifier share: sandboxes, and verdicts on replies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from palestra.tools.sandboxes import Limits, SandboxSpec, close_pools
from palestra.tools.sandboxes.choose import backend_class
from palestra.types import Score
from palestra.verifiers.code import code

LIMITS = Limits(memory_mb=192, output_bytes=1 << 20)
SPECS = {
    "namespace": SandboxSpec(backend="namespace", packages=(), limits=LIMITS, warm=2, max_live=4),
    # Its Python is this one, where pytest is.
    "unsafe": SandboxSpec(backend="unsafe", packages=(), limits=LIMITS, warm=0, max_live=4),
}


@pytest.fixture(scope="module", autouse=True)
def close() -> Iterator[None]:
    """Ends the sandboxes that were kept for the next test of a file."""
    yield
    close_pools()


@pytest.fixture(scope="session")
def spec() -> SandboxSpec:
    """Sandboxes that protect. Skipped where they do not work, but not in CI."""
    spec = SPECS["namespace"]
    offered = backend_class(spec.backend).capabilities(spec)
    if not offered.available:
        if os.environ.get("CI"):
            pytest.fail(f"namespace must work in CI: {offered.problem}")
        pytest.skip(f"namespace: {offered.problem}")
    return spec


@pytest.fixture(scope="session")
def unsafe_spec() -> SandboxSpec:
    """Sandboxes that have pytest, and do not protect."""
    return SPECS["unsafe"]


@pytest.fixture
def verify(judge: Callable[..., Score], spec: SandboxSpec) -> Callable[..., Score]:
    """`verify(program, answer, **options)`: the verdict of `code` on a program."""

    def run(program: str, answer: Any, **options: Any) -> Score:
        options = {"sandbox": spec, "timeout_s": 5.0, **options}
        return judge(code(**options), f"```python\n{program}\n```", answer)

    return run
