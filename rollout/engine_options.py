"""`EngineOptions`: which engine samples, as plain data; `open_engine` starts or attaches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.engine import Engine, KvAfterUpdate, UpdateMode


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """A served engine for the model in a folder: servers at `urls`, or one that is started.

    `python` is the interpreter of the engine's own environment; None finds it (docs/engines.md).
    `extra_args` are added to the command line of a server that is started.
    `update_mode` says what happens to generations while weights change, `kv_after_update` what
    happens to keys that older weights computed.
    """

    kind: Literal["vllm", "sglang"]
    model: str
    context_length: int
    max_concurrent: int = 256
    dtype: str = "float32"
    urls: tuple[str, ...] = ()
    python: str | None = None
    extra_args: tuple[str, ...] = ()
    update_mode: UpdateMode = "wait"
    kv_after_update: KvAfterUpdate = "recompute"
    log_folder: str | None = None


async def open_engine(options: EngineOptions) -> Engine:
    """Start a server for the model, or attach to those that run.

    Raises:
        ValueError: it cannot be started or attached to, and why.
    """
    from palestra.rollout.router import RoutedEngine

    if options.urls and options.extra_args:
        raise ValueError(
            "arguments for the server's command line reach only a server that is started here: "
            f"start {options.urls[0]} with {' '.join(options.extra_args)} instead"
        )
    stop_ids = ChatFormat.load(options.model).stop_ids
    opened: list[Engine] = []
    try:
        for url in options.urls or (None,):
            opened += [await _open_one(options, url, stop_ids)]
    except BaseException:
        for engine in opened:
            await engine.aclose()
        raise
    return RoutedEngine(opened)


async def _open_one(options: EngineOptions, url: str | None, stop_ids: frozenset[int]) -> Engine:
    kind: Any
    if options.kind == "vllm":
        from palestra.rollout.engine_vllm import VLLMEngine as kind
    else:
        from palestra.rollout.engine_sglang import SGLangEngine as kind
    shared: dict[str, Any] = {
        "stop_ids": stop_ids,
        "context_length": options.context_length,
        "max_concurrent": options.max_concurrent,
    }
    opened: Engine
    if url is not None:
        opened = await kind.attach(url, **shared)
    else:
        opened = await kind.launch(
            options.model,
            **shared,
            dtype=options.dtype,
            python=options.python,
            extra_args=options.extra_args,
            log_folder=options.log_folder,
        )
    return opened
