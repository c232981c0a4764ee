"""Where a policy's code runs: one interface, several backends, and a pool that keeps them warm."""

from palestra.tools.sandboxes.choose import all_capabilities, choose
from palestra.tools.sandboxes.leased import LeasedSandbox
from palestra.tools.sandboxes.limits import SAFE, Capabilities, Guarantee, Limits
from palestra.tools.sandboxes.pool import SandboxPool, close_pools, pool_of
from palestra.tools.sandboxes.sandbox import (
    ExecResult,
    FileInfo,
    FileRefused,
    PythonResult,
    Sandbox,
    SandboxDied,
    Snapshot,
    SyncSandbox,
)
from palestra.tools.sandboxes.spec import BACKENDS, SandboxSpec

__all__ = [
    "Sandbox",
    "LeasedSandbox",
    "SandboxPool",
    "pool_of",
    "close_pools",
    "choose",
    "all_capabilities",
    "SandboxSpec",
    "Limits",
    "Guarantee",
    "SAFE",
    "Capabilities",
    "BACKENDS",
    "ExecResult",
    "PythonResult",
    "FileInfo",
    "Snapshot",
    "SyncSandbox",
    "SandboxDied",
    "FileRefused",
]
