"""Weights sent to an SGLang server without a detour over files: pickled, or broadcast."""

from __future__ import annotations

import asyncio
import base64
import io
import pickle
import socket
import uuid
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from palestra.rollout.engine_errors import RequestFailed, UnsupportedServer

if TYPE_CHECKING:
    from palestra.rollout.token_client import TokenClient

NamedTensors = Sequence[tuple[str, Any]]  # a checkpoint's names and its tensors

_QUICK_S = 60.0


class TensorSender:
    """Sends tensors in the request: by value from a CPU, from a GPU as handles on its memory.

    By value is for small models; handles (CUDA IPC) are for a server on the same GPU.
    """

    def __init__(self, client: TokenClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def send(self, tensors: NamedTensors, version: str, *, flush: bool) -> None:
        """Have a halted server load all weights. Raises RequestFailed where it refuses."""
        ranks = await _count_ranks(self._client)
        # The copies must live until the server has read them: a handle keeps nothing alive.
        copies = [(name, tensor.detach().contiguous()) for name, tensor in tensors]
        on_gpu = any(tensor.is_cuda for _, tensor in copies)
        pickled = base64.b64encode(_pickle_handles(copies) if on_gpu else pickle.dumps(copies))
        async with _Session(self._client, self._timeout_s):
            await self._client.post(
                "/update_weights_from_tensor",
                {
                    "serialized_named_tensors": [pickled.decode()] * ranks,
                    "weight_version": version,
                    "flush_cache": flush,
                },
                timeout_s=self._timeout_s,
            )
        del copies


class DistributedSender:
    """Broadcasts tensors to the server's workers: NCCL from a GPU, Gloo from a CPU.

    The trainer is rank 0 of a process group of its own, made with the first update.
    """

    def __init__(self, client: TokenClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._group: Any = None
        self._group_name = ""

    async def send(self, tensors: NamedTensors, version: str, *, flush: bool) -> None:
        """Have a halted server receive all weights. Raises RequestFailed where it refuses."""
        copies = [(name, tensor.detach().contiguous()) for name, tensor in tensors]
        if self._group is None:
            self._group = await self._join("nccl" if copies[0][1].is_cuda else "gloo")
        body = {
            "names": [name for name, _ in copies],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in copies],
            "shapes": [list(tensor.shape) for _, tensor in copies],
            "group_name": self._group_name,
            "weight_version": version,
            "flush_cache": flush,
        }
        async with _Session(self._client, self._timeout_s):
            # Both sides meet inside the same collective calls, so they must run at the same time.
            received = asyncio.create_task(
                self._client.post(
                    "/update_weights_from_distributed", body, timeout_s=self._timeout_s
                )
            )
            await asyncio.wait({received}, timeout=0.05)
            if received.done():
                received.result()
            await asyncio.to_thread(self._broadcast, copies)
            await received

    async def _join(self, backend: str) -> Any:
        """Meet the server's workers in a process group, in which we are rank 0."""
        world_size = 1 + await _count_ranks(self._client)
        self._group_name = f"palestra-{uuid.uuid4().hex[:8]}"
        host, port = await asyncio.to_thread(_meeting_point, self._client.base_url)
        joined = asyncio.create_task(
            self._client.post(
                "/init_weights_update_group",
                {
                    "master_address": host,
                    "master_port": port,
                    "rank_offset": 1,
                    "world_size": world_size,
                    "group_name": self._group_name,
                    "backend": backend,
                },
                timeout_s=self._timeout_s,
            )
        )
        meeting = asyncio.to_thread(
            _make_group, backend, host, port, world_size, self._group_name, self._timeout_s
        )
        try:
            group, _ = await asyncio.gather(meeting, joined)
        except RequestFailed as error:
            raise UnsupportedServer(
                f"{self._client.base_url} cannot join a {backend} group: {error.message}"
            ) from None
        return group

    def _broadcast(self, tensors: NamedTensors) -> None:
        import torch.distributed as dist

        options = dist.BroadcastOptions()
        options.rootRank = 0
        for work in [self._group.broadcast([tensor], options) for _, tensor in tensors]:
            work.wait()


class _Session:
    """SGLang takes tensors between the opening and the closing of an update only."""

    def __init__(self, client: TokenClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def __aenter__(self) -> None:
        await self._client.post("/begin_weight_update", {}, timeout_s=self._timeout_s)

    async def __aexit__(self, *_: object) -> None:
        closing = self._client.post("/end_weight_update", {}, timeout_s=self._timeout_s)
        await asyncio.shield(closing)


async def _count_ranks(client: TokenClient) -> int:
    info = await client.get("/server_info", timeout_s=_QUICK_S)
    return int(info.get("tp_size") or 1)


def _pickle_handles(tensors: NamedTensors) -> bytes:
    """Pickle GPU tensors as CUDA IPC handles, as torch passes them between processes."""
    import torch.multiprocessing.reductions  # registers how

    torch.multiprocessing.reductions.init_reductions()
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(tensors)
    return buffer.getvalue()


def _meeting_point(base_url: str) -> tuple[str, int]:
    """An address of this machine that the server can reach, and a free port."""
    host, _, port = base_url.removeprefix("http://").removeprefix("https://").partition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect((host, int(port.partition("/")[0] or 80)))  # sends nothing
        address = str(route.getsockname()[0])
    with socket.socket() as probe:
        probe.bind((address, 0))
        return address, int(probe.getsockname()[1])


def _make_group(
    backend: str, host: str, port: int, world_size: int, group_name: str, timeout_s: float
) -> Any:
    """A group beside the trainer's own, made as SGLang makes its end of it.

    torch has no public function for a group with processes that are not in the default one.
    """
    import torch.distributed
    from torch.distributed import distributed_c10d as c10d

    dist: Any = torch.distributed  # it does not tell type checkers that it has stores

    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(host, port, world_size, is_master=True, timeout=timeout)
    group, _ = c10d._new_process_group_helper(
        world_size,
        0,
        [],
        dist.Backend(backend),
        dist.PrefixStore(group_name, store),
        group_name=c10d.GroupName(group_name),
        timeout=timeout,
    )
    return group
