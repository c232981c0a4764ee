"""Live weight updates of a running SGLang server: drain or halt it, load, resume, check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from palestra.rollout.engine import KvAfterUpdate, Probe, StaleWeights, UpdateMode
from palestra.rollout.engine_errors import RequestFailed
from palestra.rollout.safetensors_header import Tensors, first_difference, read_folder
from palestra.rollout.sglang_senders import DistributedSender, NamedTensors, TensorSender
from palestra.rollout.sglang_traits import ServerTraits
from palestra.rollout.sglang_wire import GENERATE, read_scores, score_body
from palestra.rollout.token_client import TokenClient
from palestra.rollout.weight_check import fit_probe, worst_error

Transfer = Literal["tensor", "distributed"]

_QUICK_S = 60.0  # what a server answers at once; more than enough on a busy machine
_ABORT_PERIOD_S = 0.1
# Of the probe's last tokens so many are computed afresh on top of cached keys.
_TAIL_TOKENS = 16


class Gate:
    """Generations pass through it; while weights change, new ones wait before it."""

    def __init__(self) -> None:
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Pass when it is open, and count as inside until done."""
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def wait_until_empty(self) -> None:
        await self._empty.wait()


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """New weights of `version`: a folder of safetensors, or tensors by their checkpoint's names."""

    version: int
    folder: Path | None
    tensors: NamedTensors | None
    transfer: Transfer
    probe: Probe | None
    mode: UpdateMode
    kv_after_update: KvAfterUpdate


class SGLangWeights:
    """Changes the weights that one server serves.

    Args:
        gate: what all generations sent to the server pass through.
        traits: what it serves.
        timeout_s: for each step; draining takes as long as the longest generation.
    """

    def __init__(
        self, client: TokenClient, gate: Gate, traits: ServerTraits, *, timeout_s: float
    ) -> None:
        self._client = client
        self._gate = gate
        # A probe reaches past a page and the end that is computed afresh.
        page_size = traits.page_size
        self._probe_block = None if page_size is None else page_size + _TAIL_TOKENS
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._expected: Tensors | None = None
        self._tied: frozenset[str] = frozenset()
        self._tensor_sender = TensorSender(client, timeout_s)
        self._distributed_sender = DistributedSender(client, timeout_s)
        self._last: Update | None = None
        self._remember(traits.model_folder)

    async def update(self, update: Update) -> None:
        """Change what the server serves, and check that it does. Further calls wait their turn.

        Raises:
            ValueError: the weights do not fit or cannot be read; the server serves what it did.
            StaleWeights: it does not serve them; its message names what is stale.
            EngineError, TimeoutError: the server failed or did not answer.
        """
        if update.probe is not None:
            update = replace(update, probe=fit_probe(update.probe, self._probe_block))
        async with self._lock:
            await self._update(update)
            # Tensors are the trainer's own: they will have changed.
            self._last = update if update.tensors is None else None

    async def restore(self, *, otherwise: int) -> int:
        """Put the last weights into a server that was started again. Raises as `update`.

        Returns their version; `otherwise` where there are none, or they were tensors.
        """
        async with self._lock:
            if self._last is None:
                return otherwise
            await self._update(self._last)
            return self._last.version

    async def _update(self, update: Update) -> None:
        # SGLang 0.5.23 dies of weights that do not fit: it "restores" the folder that failed.
        await asyncio.to_thread(self._refuse_unfit, update)
        recompute = update.kv_after_update == "recompute"
        if update.probe is not None and recompute:
            await warm_cache(self._client, update.probe, timeout_s=self._timeout_s)
        if update.mode != "keep":
            self._gate.close()
        try:
            await self._drain(update.mode)
            # Halted by "retract" it drops the keys of what is in progress, and computes them again.
            # It must be halted even when idle: a generation that has just been answered may still
            # be in its books, and then it does not flush its cache.
            await self._post("/pause_generation", {"mode": "retract" if recompute else "in_place"})
            try:
                await self._load(update, flush=recompute)
            finally:
                await asyncio.shield(self._post("/continue_generation", {}))
        finally:
            self._gate.open()
        version = str(update.version)
        if update.probe is not None:
            await check_served(
                self._client,
                update.probe,
                version,
                cache_cleared=recompute,
                timeout_s=self._timeout_s,
            )
        else:
            told = await self._client.get("/model_info", timeout_s=_QUICK_S)
            _require_version(self._client, str(told["weight_version"]), version)

    async def _drain(self, mode: UpdateMode) -> None:
        """Return when none of our generations is left, unless they are to be kept."""
        if mode == "keep":
            return
        async with asyncio.timeout(self._timeout_s):
            if mode == "abort":
                empty = asyncio.create_task(self._gate.wait_until_empty())
                try:
                    while not empty.done():
                        # Again and again: one may not have arrived when the others were aborted.
                        await self._post("/abort_request", {"abort_all": True})
                        await asyncio.wait({empty}, timeout=_ABORT_PERIOD_S)
                finally:
                    empty.cancel()
            await self._gate.wait_until_empty()

    async def _load(self, update: Update, *, flush: bool) -> None:
        version = str(update.version)
        try:
            if update.folder is not None:
                await self._post(
                    "/update_weights_from_disk",
                    {
                        "model_path": str(update.folder),
                        "weight_version": version,
                        "flush_cache": flush,
                    },
                )
                return
            assert update.tensors is not None
            sender = (
                self._tensor_sender if update.transfer == "tensor" else self._distributed_sender
            )
            await sender.send(update.tensors, version, flush=flush)
        except RequestFailed as error:
            if "cache was not flushed" in error.message:
                raise StaleWeights(
                    f"{self._client.base_url} loaded version {version!r}, but kept keys of older "
                    f"weights: {error.message}"
                ) from None
            if error.status == 400:
                what = update.folder or "the tensors"
                raise ValueError(f"{what} could not be loaded: {error.message}") from None
            raise

    def _remember(self, folder: Path) -> None:
        """What the served model's tensors are, for new ones to be compared with."""
        try:
            self._expected = read_folder(folder)
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            return  # not on this machine, or in another format
        if config.get("tie_word_embeddings"):
            self._tied = frozenset({"lm_head.weight"})

    def _refuse_unfit(self, update: Update) -> None:
        """Raise ValueError for weights that would not load, before anything is touched."""
        if self._expected is None:
            return
        if update.folder is not None:
            what, found = str(update.folder), read_folder(update.folder)
        else:
            what = "the tensors sent"
            found = {
                name: (str(tensor.dtype), tuple(tensor.shape))
                for name, tensor in update.tensors or ()
            }
        difference = first_difference(self._expected, found, self._tied)
        if difference is not None:
            raise ValueError(f"{what}: does not fit the served model: {difference}")

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._client.post(path, body, timeout_s=self._timeout_s)


async def warm_cache(client: TokenClient, probe: Probe, *, timeout_s: float) -> None:
    """Have the server cache the probe's keys under its present weights."""
    body = score_body(probe.token_ids, start=-1)
    await client.post(GENERATE, body, timeout_s=timeout_s, idempotent=True)


async def check_served(
    client: TokenClient,
    probe: Probe,
    version: str,
    *,
    cache_cleared: bool = True,
    timeout_s: float = 120.0,
) -> None:
    """Raise StaleWeights, naming what is stale, unless the server serves what it was sent.

    The end of the probe is scored, on top of the keys before it, which `warm_cache` had the prefix
    cache hold before the update. Only where it is off, all of the probe is computed afresh, to tell
    whether the weights are wrong or those keys.

    Args:
        version: the server's name for the weights that it was sent.
        cache_cleared: False where keys of older weights were kept on purpose: then the probe is
            computed afresh.
    """

    async def score(start: int) -> float:
        answer = await client.post(
            GENERATE, score_body(probe.token_ids, start=start), timeout_s=timeout_s, idempotent=True
        )
        _require_version(client, str(answer["meta_info"]["weight_version"]), version)
        return worst_error(probe.logprobs[start:], read_scores(answer, probe.token_ids[start:]))

    start = len(probe.token_ids) - _TAIL_TOKENS - 1 if cache_cleared else 0
    error = await score(start)
    if error <= probe.tolerance:
        return
    where, limit = client.base_url, f"(tolerance {probe.tolerance:g})"
    if cache_cleared and await score(0) <= probe.tolerance:
        raise StaleWeights(
            f"{where} computes with keys of older weights: its prefix cache was not flushed after "
            f"the update to version {version!r}; a cached probe is off by {error:.3g} {limit}"
        )
    raise StaleWeights(
        f"{where} does not serve version {version!r}: it computes with other weights; the probe's "
        f"log-probabilities are off by up to {error:.3g} {limit}"
    )


def _require_version(client: TokenClient, served: str, version: str) -> None:
    if served != version:
        raise StaleWeights(
            f"{client.base_url} says that it serves version {served!r}, it was sent {version!r}"
        )


def one_update(
    version: int,
    folder: str | Path | None,
    tensors: Sequence[tuple[str, Any]] | None,
    *,
    transfer: Transfer,
    probe: Probe | None,
    mode: UpdateMode,
    kv_after_update: KvAfterUpdate,
) -> Update:
    """Check what `SGLangEngine.update_weights` was given. Raises ValueError."""
    if (folder is None) == (tensors is None):
        given = "both" if folder is not None else "neither"
        raise ValueError(f"an update has one source, a folder or tensors, got {given}")
    for name, value, known in (
        ("mode", mode, ("wait", "keep", "abort")),
        ("kv_after_update", kv_after_update, ("recompute", "keep")),
        ("transfer", transfer, ("tensor", "distributed")),
    ):
        if value not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, got {value!r}")
    return Update(
        version=version,
        folder=None if folder is None else Path(folder).absolute(),
        tensors=None if tensors is None else tuple(tensors),
        transfer=transfer,
        probe=probe,
        mode=mode,
        kv_after_update=kv_after_update,
    )
