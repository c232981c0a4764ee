"""`InProcessVLLM`: vLLM inside this process, sharing its GPU with a trainer; weights from memory.

Only where vLLM can be imported: on a GPU machine with palestra[vllm], or in `.venv-vllm`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from palestra.rollout.engine import KvAfterUpdate, Piece, Probe, StaleWeights
from palestra.rollout.engine_errors import ContextOverflow
from palestra.rollout.vllm_wire import generate_body
from palestra.rollout.weight_check import worst_error
from palestra.types import Completion, Sampling, VersionSpan

T = TypeVar("T")

EXTENSION = "palestra.rollout.vllm_worker.WorkerExtension"


class InProcessVLLM:
    """An `Engine` whose steps run in a thread of this process; weights change between two steps.

    Args:
        model_folder: as Hugging Face saves it.
        stop_ids: tokens that end a reply.
        context_length: most tokens of prompt and completion.
        max_concurrent: sequences at once.
        kv_cache_gib: memory for keys and values; None leaves it to vLLM.
        sleep_mode: reserve what `sleep` needs (GPU only).
        more: further arguments of `vllm.LLM`.

    Raises:
        ValueError: vLLM cannot be imported here.
    """

    def __init__(
        self,
        model_folder: str | Path,
        *,
        stop_ids: frozenset[int],
        context_length: int,
        dtype: str = "float32",
        max_concurrent: int = 256,
        kv_cache_gib: float | None = None,
        sleep_mode: bool = False,
        **more: Any,
    ) -> None:
        # vLLM reads these when it is imported: its engine is to run here, not in a process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            import vllm
        except ImportError as error:
            raise ValueError(
                f"vLLM cannot be imported in this environment ({error}): install palestra[vllm], "
                "or start a server with VLLMEngine.launch"
            ) from None
        arguments: dict[str, Any] = {
            "model": str(model_folder),
            "dtype": dtype,
            "max_model_len": context_length,
            "max_num_seqs": max_concurrent,
            "logprobs_mode": "processed_logprobs",
            "max_logprobs": 21,  # OpenAI's 20 likeliest tokens, and the sampled one
            "generation_config": "vllm",
            "worker_extension_cls": EXTENSION,
            "enable_sleep_mode": sleep_mode,
            # A step ahead of its results would belong to two versions.
            "async_scheduling": False,
            "disable_log_stats": True,
            **more,
        }
        if kv_cache_gib is not None:
            arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
        self.context_length = context_length
        self.version = 0
        self._kv_after_update: dict[int, KvAfterUpdate] = {}  # by the version that was sent
        self._engine: Any = vllm.LLM(**arguments).llm_engine
        self._engine.set_weight_version("0")
        self._stop_ids = sorted(stop_ids)
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._between_steps = asyncio.Lock()
        self._loop_task: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm")

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """See `Engine`. Raises ContextOverflow where the prompt leaves no room."""
        return (await self._sample(prompt_ids, sampling))[0]

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """See `Engine`, but everything comes in one piece, at the end. Raises as `generate`."""
        completion, rows = await self._sample(prompt_ids, sampling, top_logprobs)
        tops = tuple(_likeliest(row, top_logprobs) for row in rows) if top_logprobs else ()
        yield Piece.whole(completion, tops)

    async def _sample(
        self, prompt_ids: Sequence[int], sampling: Sampling, top_logprobs: int = 0
    ) -> tuple[Completion, Sequence[Mapping[int, Any]]]:
        """A completion, and for each of its tokens vLLM's log-probabilities by id."""
        room = self.context_length - len(prompt_ids)
        if not prompt_ids or room < 1:
            raise ContextOverflow(
                f"a prompt of {len(prompt_ids)} tokens does not fit: it needs 1 to "
                f"{self.context_length - 1} (context_length {self.context_length})"
            )
        body = generate_body(
            "generate",
            "",
            prompt_ids,
            sampling,
            max_tokens=min(sampling.max_tokens, room),
            stop_ids=self._stop_ids,
            top_logprobs=top_logprobs,
        )
        output = (await self._request(prompt_ids, body["sampling_params"])).outputs[0]
        ids = tuple(output.token_ids)
        rows = output.logprobs or ()
        completion = Completion(
            ids=ids,
            logprobs=tuple(row[token].logprob for row, token in zip(rows, ids, strict=True)),
            stop_reason=output.finish_reason,
            version_spans=tuple(
                VersionSpan(
                    version=int(span.version),
                    start=span.start,
                    end=span.end,
                    kv_after_update=self._kv_after_update.get(int(span.version)),
                )
                for span in output.weight_versions or ()
            ),
        )
        return completion, rows

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """See `Engine`. Keys are computed afresh, whatever is cached."""
        params = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, "detokenize": False}
        rows = (await self._request(token_ids, params)).prompt_logprobs
        return tuple(row[token].logprob for row, token in zip(rows[1:], token_ids[1:], strict=True))

    async def update_weights(
        self,
        version: int,
        folder: str | Path | None = None,
        *,
        tensors: Iterable[tuple[str, Any]] | None = None,
        probe: Probe | None = None,
        kv_after_update: KvAfterUpdate = "recompute",
    ) -> None:
        """Change the weights between two steps; sequences in progress go on with the new ones.

        Args:
            tensors: a checkpoint's names and tensors, on any device: `model.state_dict().items()`.
            kv_after_update: "recompute" throws away what older weights computed.

        Raises:
            ValueError: they do not fit; the engine has the weights that it had.
            StaleWeights: the probe is not met.
        """
        if (folder is None) == (tensors is None):
            raise ValueError("an update has one source, a folder or tensors")
        method, source = (
            ("palestra_load_tensors", list(tensors or ()))
            if folder is None
            else ("palestra_load", str(folder))
        )

        def change() -> None:
            for result in self._engine.collective_rpc(method, args=(source,)):
                if result["refusal"] is not None:
                    raise ValueError(result["refusal"])
            if kv_after_update == "recompute":
                self._engine.reset_prefix_cache(reset_running_requests=True)
            self._engine.set_weight_version(str(version))

        async with self._between_steps:
            await self._in_thread(change)
            self.version, self._kv_after_update[version] = version, kv_after_update
        if probe is not None:
            error = worst_error(probe.logprobs, await self.score(probe.token_ids))
            if not error <= probe.tolerance:
                raise StaleWeights(
                    f"vLLM does not compute with version {version}: the probe's log-probabilities "
                    f"are off by up to {error:.3g} (tolerance {probe.tolerance:g})"
                )

    async def sleep(self, level: int = 1) -> None:
        """Free GPU memory between rollouts: weights go to the host (1) or are dropped (2).

        Needs `sleep_mode`; a CPU frees nothing. Nothing may be in progress.
        """
        async with self._between_steps:
            await self._in_thread(lambda: self._engine.sleep(level))

    async def wake_up(self) -> None:
        """Take the memory back. After level 2, update the weights before anything is sampled."""
        async with self._between_steps:
            await self._in_thread(self._engine.wake_up)

    async def aclose(self) -> None:
        """End the engine; unfinished generations are cancelled. May be called more than once."""
        for future in self._waiting.values():
            future.cancel()
        if self._loop_task is not None:
            await asyncio.wait([self._loop_task])
        self._worker.shutdown(wait=True)
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()

    async def _request(self, token_ids: Sequence[int], params: dict[str, Any]) -> Any:
        """What vLLM makes of a request, when it has ended."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        structure = params.pop("structured_outputs", None)
        sampling = SamplingParams(
            **params,
            structured_outputs=structure and StructuredOutputsParams(**structure),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = str(next(self._numbers))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        async with self._between_steps:
            prompt = {"prompt_token_ids": list(token_ids)}
            await self._in_thread(lambda: self._engine.add_request(name, prompt, sampling))
            self._waiting[name] = future
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        """Step until nothing waits."""
        try:
            while self._waiting:
                await asyncio.sleep(0)  # whoever is ready may submit, or change the weights
                async with self._between_steps:
                    await self._drop_cancelled()
                    for output in await self._in_thread(self._engine.step):
                        future = self._waiting.pop(output.request_id, None)
                        if future is not None and not future.done():
                            future.set_result(output)
        except Exception as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
            self._waiting.clear()

    async def _drop_cancelled(self) -> None:
        gone = [name for name, future in self._waiting.items() if future.cancelled()]
        if gone:
            await self._in_thread(lambda: self._engine.abort_request(gone))
        for name in gone:
            del self._waiting[name]

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, action)


def _likeliest(row: Mapping[int, Any], n: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of one position, best first, of those that can be sampled."""
    tops = [(token, entry.logprob) for token, entry in row.items() if entry.logprob > -math.inf]
    return tuple(sorted(tops, key=lambda top: -top[1])[:n])
