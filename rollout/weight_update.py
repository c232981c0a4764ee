"""Live weight updates of a running vLLM server, by whatever of its interfaces it has.

Halt, load, go on, check. What need not be asked for one after the other is asked for at once: with
a small model the questions take longer than the weights.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palestra.rollout.engine import KvAfterUpdate, Probe, StaleWeights, UpdateMode
from palestra.rollout.engine_errors import RequestFailed, UnsupportedServer
from palestra.rollout.safetensors_header import first_difference, read_folder
from palestra.rollout.vllm_features import ServerFeatures, call_workers, detect_features
from palestra.rollout.weight_check import ProbeCheck, check_version, fit_probe
from palestra.rollout.weight_probe import score
from palestra.rollout.weight_senders import SENDERS, open_sender

if TYPE_CHECKING:
    from palestra.rollout.token_client import TokenClient

ADAPTER = "adapter"  # the name under which a LoRA adapter is served

_QUICK_S = 60.0  # what a server answers at once; more than enough on a busy machine


def name_version(version: int) -> str:
    """The server's name for weights of our `version`."""
    return str(version)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Update:
    """Weights of `version`, from exactly one of folder, lora and tensors."""

    version: int
    folder: str | None
    lora: str | None
    tensors: tuple[tuple[str, Any], ...] | None
    probe: Probe | None
    mode: UpdateMode
    kv_after_update: KvAfterUpdate


class WeightUpdater:
    """Updates one server, one update at a time.

    Args:
        client: of the server.
        model: the name that requests give for the base model.
        timeout_s: for each step; "wait" may take as long as the longest generation.
        features: what the server offers; asked for where it is not given.
    """

    def __init__(
        self,
        client: TokenClient,
        model: str,
        *,
        timeout_s: float = 600.0,
        features: ServerFeatures | None = None,
    ) -> None:
        self.model = model
        self.version: int | None = None  # that it was last sent, None before the first update
        self._client = client
        self._timeout_s = timeout_s
        self._base_model = model
        self._lock = asyncio.Lock()
        self._features = features
        # What a server that starts again needs: the last folder, and an adapter loaded since.
        self._served: list[_Update] = []
        self._sender: Any = None
        self._adapter_id: int | None = None  # the worker's number of our adapter

    async def update(
        self,
        version: int,
        folder: str | Path | None = None,
        *,
        lora: str | Path | None = None,
        tensors: Iterable[tuple[str, Any]] | None = None,
        probe: Probe | None = None,
        mode: UpdateMode = "wait",
        kv_after_update: KvAfterUpdate = "recompute",
    ) -> None:
        """Change what the server serves, and check that it does. Further calls wait their turn.

        Args:
            version: of the new weights; what is sampled from now on carries it.
            folder: safetensors with all weights, where the server can read it.
            lora: a PEFT adapter's folder, where the server can read it; afterwards requests name
                `model`, which then is "adapter".
            tensors: names and tensors on the same GPU (backend "ipc") or another (backend "nccl").
            probe: what is scored afterwards; without one only the version is checked.
            mode: what happens to generations in progress: "wait" lets them end first, "keep" halts
                them and goes on with the new weights, "abort" ends them with what they have.
            kv_after_update: what happens to keys that older weights computed: "recompute" throws
                them away, those of generations in progress too; "keep" lets later tokens attend to
                them.

        Raises:
            ValueError: the weights do not fit or cannot be read; the server serves what it did.
            UnsupportedServer: the server has no way to take them.
            StaleWeights: it does not serve them; its message names what is stale.
            EngineError, TimeoutError: the server failed or did not answer.
        """
        _require_one_source(folder, lora, tensors)
        update = _Update(
            version=version,
            folder=_absolute(folder),
            lora=_absolute(lora),
            tensors=None if tensors is None else tuple(tensors),
            probe=probe,
            mode=mode,
            kv_after_update=kv_after_update,
        )
        async with self._lock:
            await self._update(update)
            base = [] if lora is None else [it for it in self._served if it.lora is None]
            self._served = [*base, update]

    async def restore(self) -> None:
        """Put the last weights into a server that was started again. Raises as `update`.

        Tensors that were sent are not there any more: it then serves what it was started with, and
        says so by its version.
        """
        async with self._lock:
            self._features, self._sender, self._adapter_id = None, None, None
            self.model, self.version = self._base_model, None
            for update in self._served:
                if update.tensors is None:
                    await self._update(update)

    async def _update(self, update: _Update) -> None:
        client, version, probe = self._client, name_version(update.version), update.probe
        if self._features is None:
            self._features = await detect_features(client)
        features = self._features
        _require(features, update)
        if probe is not None:
            probe = fit_probe(probe, features.block_size)
        clears = update.kv_after_update == "recompute"
        preparing: list[Awaitable[Any]] = [self._refuse_unfit(update, features)]
        if probe is not None and clears:
            # Keys of the present weights are in the cache then: they must be gone afterwards.
            preparing.append(
                score(
                    client,
                    self.model,
                    probe.token_ids,
                    way=features.way,
                    fresh=False,
                    timeout_s=self._timeout_s,
                )
            )
        await _at_once(preparing)
        model = self._base_model if update.lora is None else ADAPTER
        check: ProbeCheck | None = None
        try:
            await self._halt(model, update.mode)
            changing = [self._load(update, features)]
            if clears:
                changing.append(self._clear_cache(version))
            if update.lora is not None:
                await _at_once(changing)
            if probe is not None:
                # The halted server takes it in and answers as soon as it goes on.
                check = ProbeCheck(
                    client,
                    model,
                    probe,
                    way=features.way,
                    cache_cleared=clears,
                    timeout_s=self._timeout_s,
                )
            if update.lora is None:
                await _at_once(changing)
        except BaseException:
            if check is not None:
                check.cancel()
            raise
        finally:
            params = {"tags": "scheduling"}
            going_on = client.post("/wake_up", params=params, timeout_s=_QUICK_S, idempotent=True)
            await asyncio.shield(going_on)
        self.model, self.version = model, update.version
        if check is None:
            await check_version(client, version, timeout_s=_QUICK_S)
        else:
            await check.finish(version)

    async def _refuse_unfit(self, update: _Update, features: ServerFeatures) -> None:
        """Raise ValueError for weights that would not load, before anything is touched."""
        path = update.folder or update.lora
        if path is None:
            return
        if features.extension:
            method = "palestra_refusal" if update.lora is None else "palestra_adapter_refusal"
            for result in await call_workers(self._client, method, path, idempotent=True):
                if result["refusal"] is not None:
                    raise ValueError(result["refusal"])
        elif update.folder is not None:
            served = (await self._client.get("/v1/models", timeout_s=_QUICK_S))["data"][0]["root"]
            await asyncio.to_thread(_refuse_beside, update.folder, served)

    async def _halt(self, model: str, mode: UpdateMode) -> None:
        """Return when the server computes nothing any more; new requests wait in it.

        Asleep at level 0 it is halted, no more. Its own /pause would wait for another 20 ms.
        """
        exchanged = model == self.model and (model != ADAPTER or self._adapter_id is not None)
        if mode == "keep" and not exchanged:
            # A generation keeps the adapter that it was asked with, or none.
            mode = "wait"
        params = {"level": "0", "mode": mode}
        await self._client.post("/sleep", params=params, timeout_s=self._timeout_s)

    async def _clear_cache(self, version: str) -> None:
        """Have the halted server forget every key, also those of generations in progress."""
        params = {"reset_running_requests": "true", "reset_external": "true"}
        answer = await self._client.post(
            "/reset_prefix_cache", params=params, timeout_s=self._timeout_s
        )
        if not answer["success"]:
            raise StaleWeights(
                f"{self._client.base_url} could not reset its prefix cache for version "
                f"{version!r}: it keeps keys of older weights"
            )

    async def _load(self, update: _Update, features: ServerFeatures) -> None:
        """Change the weights of the halted server, then the name of their version."""
        client, version = self._client, name_version(update.version)
        if update.folder is not None and features.backend == "disk" and features.can_transfer:
            await self._post("/start_weight_update")
            info = {"update_info": {"path": update.folder}}
            try:
                await self._post("/update_weights", info)
            except RequestFailed as error:
                raise ValueError(f"{update.folder} could not be loaded: {error.message}") from None
            await self._post("/finish_weight_update", {"weight_version": version})
            return
        if update.folder is not None and features.extension:
            for result in await call_workers(
                client, "palestra_load", update.folder, timeout_s=self._timeout_s
            ):
                if result["refusal"] is not None:
                    raise ValueError(result["refusal"])
        elif update.folder is not None:
            await self._post(
                "/collective_rpc",
                {"method": "reload_weights", "kwargs": {"weights_path": update.folder}},
            )
        elif update.lora is not None:
            await self._load_adapter(update.lora, features)
        else:
            assert update.tensors is not None and features.backend is not None
            if self._sender is None:
                self._sender = open_sender(features.backend, client, self._timeout_s)
            await self._sender.send(update.tensors)
        await self._post("/update_weight_version", {"new_version": version})

    async def _load_adapter(self, folder: str, features: ServerFeatures) -> None:
        if self._adapter_id is not None:
            arguments = (self._adapter_id, folder)
            for result in await call_workers(self._client, "palestra_exchange_adapter", *arguments):
                if result["refusal"] is not None:
                    raise ValueError(f"{folder} could not be loaded: {result['refusal']}")
            return
        before = await self._adapter_ids(features)
        adapter = {"lora_name": ADAPTER, "lora_path": folder}
        with suppress(RequestFailed):  # an earlier engine's, or none
            await self._post("/v1/unload_lora_adapter", {"lora_name": ADAPTER})
        try:
            await self._post("/v1/load_lora_adapter", adapter)
        except RequestFailed as error:
            raise ValueError(f"{folder} could not be loaded: {error.message}") from None
        added = await self._adapter_ids(features) - before
        self._adapter_id = added.pop() if len(added) == 1 else None

    async def _adapter_ids(self, features: ServerFeatures) -> set[int]:
        if not features.extension:
            return set()
        return set((await call_workers(self._client, "palestra_adapter_ids"))[0]["ids"])

    async def _post(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        await self._client.post(path, body, timeout_s=self._timeout_s)


async def _at_once(actions: Iterable[Awaitable[Any]]) -> None:
    """Do all of them; raises what the first raised when all have ended."""
    for result in await asyncio.gather(*actions, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _absolute(path: str | Path | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _require_one_source(*sources: Any) -> None:
    given = sum(source is not None for source in sources)
    if given != 1:
        raise ValueError(
            f"an update has one source, a folder, lora or tensors, got {given} of them"
        )


def _require(features: ServerFeatures, update: _Update) -> None:
    """Raise UnsupportedServer unless the server can take weights from the update."""
    if not features.can_change:
        raise UnsupportedServer(
            "the server takes no new weights: start it with VLLM_SERVER_DEV_MODE=1 (vLLM 0.32 or "
            "newer)"
        )
    if update.lora is not None and "/v1/load_lora_adapter" not in features.paths:
        raise UnsupportedServer(
            "the server takes no LoRA adapters: start it with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        )
    if update.tensors is not None:
        if features.device == "cpu":
            raise UnsupportedServer(
                "tensors travel between GPUs only (NCCL, CUDA IPC) and this server runs on a CPU: "
                "save them and pass folder="
            )
        if features.backend not in SENDERS:
            raise UnsupportedServer(
                f"the server's weight-transfer backend is {features.backend}: start it with "
                '--weight-transfer-config \'{"backend":"ipc"}\' (same GPU) or "nccl"'
            )


def _refuse_beside(folder: str, served: str) -> None:
    """Compare a folder with the one that a server without our extension was started with."""
    if not Path(served).is_dir() or not Path(folder).is_dir():
        return  # not on this machine
    config = json.loads((Path(served) / "config.json").read_text())
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    difference = first_difference(read_folder(served), read_folder(folder), frozenset(tied))
    if difference is not None:
        raise ValueError(f"{folder} does not fit the served model: {difference}")
