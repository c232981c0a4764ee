"""What a vLLM server offers for weight updates (docs/engines.md lists it); calls to its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from palestra.rollout.engine_errors import RequestFailed
from palestra.rollout.weight_probe import Way

if TYPE_CHECKING:
    from palestra.rollout.token_client import TokenClient

_QUICK_S = 60.0  # what a server answers at once; more than enough on a busy machine
# Those of a server in development mode.
_NEEDED_PATHS = frozenset(
    {"/sleep", "/wake_up", "/reset_prefix_cache", "/collective_rpc", "/update_weight_version"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFeatures:
    """What a server offers for weight updates.

    The rest only palestra's worker extension tells: `backend`, for weight transfer ("disk" is
    palestra's own), `device` ("cpu" or "cuda"), the prefix cache's `block_size`, and whether the
    server was started with `lora`.
    """

    paths: frozenset[str]
    extension: bool = False
    backend: str | None = None
    device: str | None = None
    block_size: int | None = None
    lora: bool = False

    @property
    def can_change(self) -> bool:
        """Whether it can be halted and its weights changed at all."""
        return self.paths >= _NEEDED_PATHS

    @property
    def can_transfer(self) -> bool:
        """Whether it has vLLM's start, update and finish."""
        return {"/start_weight_update", "/update_weights", "/finish_weight_update"} <= self.paths

    @property
    def way(self) -> Way:
        """How a probe is scored."""
        if "/inference/v1/generate" not in self.paths:
            return "completions"
        return "tail" if self.lora else "generate"


async def detect_features(client: TokenClient) -> ServerFeatures:
    """Ask a server what it has. Raises EngineError or TimeoutError when it does not answer."""
    api = await client.get("/openapi.json", timeout_s=_QUICK_S)
    paths = frozenset(api["paths"])
    if "/collective_rpc" not in paths:
        return ServerFeatures(paths=paths)
    try:
        results = await call_workers(client, "palestra_describe", idempotent=True)
    except RequestFailed:  # no such method: a server without our extension
        return ServerFeatures(paths=paths)
    return ServerFeatures(paths=paths, extension=True, **results[0])


async def call_workers(
    client: TokenClient,
    method: str,
    *arguments: str | int,
    idempotent: bool = False,
    timeout_s: float = _QUICK_S,
) -> list[dict[str, Any]]:
    """Call a method of every worker of the server; what each returned."""
    answer = await client.post(
        "/collective_rpc",
        {"method": method, "args": list(arguments)},
        timeout_s=timeout_s,
        idempotent=idempotent,
    )
    results: list[dict[str, Any]] = answer["results"]
    return results
