"""Weights sent to a vLLM server on GPUs without a detour: CUDA IPC on the same GPU, NCCL otherwise.

Written after vLLM's weight-transfer protocol; needs GPUs, so no test here runs it.
"""

from __future__ import annotations

import asyncio
import base64
import pickle
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from palestra.rollout.token_client import TokenClient

Tensors = Sequence[tuple[str, Any]]  # a checkpoint's names and its tensors, on a GPU


class Sender(Protocol):
    """Sends all weights to one halted server; `send` returns when they are loaded."""

    async def send(self, tensors: Tensors) -> None: ...


class IpcSender:
    """Lends the tensors' memory to a server on the same GPU (backend "ipc").

    The server must have been started with VLLM_ALLOW_INSECURE_SERIALIZATION=1: the handles travel
    pickled.
    """

    def __init__(self, client: TokenClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._ready = False

    async def send(self, tensors: Tensors) -> None:
        import torch
        from torch.multiprocessing.reductions import reduce_tensor

        _require_gpu(tensors)
        if not self._ready:
            await self._post("/init_weight_transfer_engine", {"init_info": {"packed": False}})
            self._ready = True
        # The copies must live until the server has read them: a handle keeps nothing alive.
        copies = [(name, tensor.detach().contiguous()) for name, tensor in tensors]
        handles = []
        for _, tensor in copies:
            properties = torch.cuda.get_device_properties(tensor.device)
            handles.append({str(properties.uuid): reduce_tensor(tensor)[1]})
        torch.cuda.synchronize()
        await self._post("/start_weight_update", None)
        pickled = base64.b64encode(pickle.dumps(handles)).decode()
        await self._post(
            "/update_weights",
            {"update_info": {**_describe(copies), "ipc_handles_pickled": pickled}},
        )
        await self._post("/finish_weight_update", {})
        del copies
        torch.cuda.ipc_collect()

    async def _post(self, path: str, body: dict[str, Any] | None) -> None:
        await self._client.post(path, body, timeout_s=self._timeout_s)


class NcclSender:
    """Broadcasts the tensors to a server on other GPUs (backend "nccl").

    The communicator is vLLM's, so vLLM must be importable here too.
    """

    def __init__(self, client: TokenClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._group: Any = None

    async def send(self, tensors: Tensors) -> None:
        _require_gpu(tensors)
        if self._group is None:
            self._group = await self._join()
        copies = [(name, tensor.detach().contiguous()) for name, tensor in tensors]
        await self._post("/start_weight_update", None)
        # Both sides meet inside the same NCCL calls, so they must run at the same time.
        received = asyncio.create_task(
            self._post("/update_weights", {"update_info": _describe(copies)})
        )
        await asyncio.wait({received}, timeout=0.05)
        if received.done():
            received.result()
        await asyncio.to_thread(self._broadcast, copies)
        await received
        await self._post("/finish_weight_update", {})

    async def _join(self) -> Any:
        """Meet the server's workers in a NCCL group, in which we are rank 0."""
        try:
            from vllm.distributed.weight_transfer.nccl_common import trainer_init
        except ImportError as error:
            raise ValueError(
                f"NCCL uses vLLM's communicator, and vLLM cannot be imported here ({error}): "
                "install palestra[vllm], or save the weights and pass folder="
            ) from None
        world = await self._client.get("/get_world_size", timeout_s=self._timeout_s)
        meeting = {
            "master_address": socket.gethostbyname(socket.gethostname()),
            "master_port": _free_port(),
            "world_size": 1 + int(world["world_size"]),
        }
        joined = asyncio.create_task(
            self._post(
                "/init_weight_transfer_engine",
                {"init_info": {**meeting, "rank_offset": 1, "packed": False}},
            )
        )
        group = await asyncio.to_thread(trainer_init, meeting)
        await joined
        return group

    def _broadcast(self, tensors: Tensors) -> None:
        import torch

        stream = torch.cuda.current_stream()
        for _, tensor in tensors:
            self._group.broadcast(tensor, src=0, stream=stream)
        stream.synchronize()

    async def _post(self, path: str, body: dict[str, Any] | None) -> None:
        await self._client.post(path, body, timeout_s=self._timeout_s)


SENDERS: Mapping[str, type[IpcSender] | type[NcclSender]] = {"ipc": IpcSender, "nccl": NcclSender}


def open_sender(backend: str, client: TokenClient, timeout_s: float) -> Sender:
    """The sender for a server's weight-transfer backend, a key of SENDERS."""
    return SENDERS[backend](client, timeout_s)


def _describe(tensors: Tensors) -> dict[str, Any]:
    return {
        "names": [name for name, _ in tensors],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        "shapes": [list(tensor.shape) for _, tensor in tensors],
    }


def _require_gpu(tensors: Tensors) -> None:
    for name, tensor in tensors:
        if not tensor.is_cuda:
            raise ValueError(
                f"{name} is on {tensor.device}: only tensors on a GPU can be sent, save the "
                "weights and pass folder="
            )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
