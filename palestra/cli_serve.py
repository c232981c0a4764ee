"""`palestra serve MODEL`: a policy behind the OpenAI API, until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import logging
import os
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from palestra import envs
from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.chat_format_file import load_tokenizer
from palestra.rollout.engine import Engine
from palestra.rollout.engine_options import EngineOptions, open_engine
from palestra.rollout.episode import Limits
from palestra.rollout.policy import TokenPolicy
from palestra.rollout.recorder import Recorder
from palestra.rollout.router import RoutedEngine
from palestra.rollout.serving.api_keys import ApiKeys
from palestra.rollout.serving.app import Served, build_app
from palestra.rollout.serving.gateway import Gateway
from palestra.rollout.serving.gateway_routes import episode_routes
from palestra.rollout.serving.limits import ServerLimits
from palestra.rollout.serving.model_replier import ModelReplier
from palestra.rollout.serving.remote_episodes import RemoteEpisodes
from palestra.rollout.serving.reply import Replier
from palestra.rollout.serving.server import bind, ignore_further_signals, serve
from palestra.rollout.serving.text_completer import TextCompleter
from palestra.trainer.model_folder import find_model_folder
from palestra.types import Sampling

if TYPE_CHECKING:
    from starlette.requests import Request
    from transformers import PreTrainedTokenizerBase

_DEFAULT_CONTEXT = 4096
_DEFAULT_BATCH = {"hf": 16, "vllm": 256, "sglang": 256}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """What the command line says; None is what the model or the engine makes of it."""

    model: str
    engine: Literal["hf", "vllm", "sglang"] = "hf"
    engine_urls: tuple[str, ...] = ()
    engine_python: str | None = None
    engine_args: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    api_key_env: str | None = None
    api_keys_file: Path | None = None
    no_api_key: bool = False
    max_body_mb: float = 16
    rate_limit: int | None = None
    max_concurrent: int = 1024
    max_batch: int | None = None
    context_length: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    drain_timeout_s: float = 30.0
    gateway: str | None = None
    record: Path | None = None
    split: str = "train"
    temperature: float = 1.0
    max_tokens: int = 512
    max_turns: int = 16


def run_serve(options: ServeOptions) -> int:
    """Serve until SIGTERM or SIGINT, and then 0.

    Raises:
        ValueError: no such model or environment, an engine that cannot be started or attached to, a
            port in use, keys that are missing or none.
    """
    keys = _read_keys(options)
    if (options.gateway is None) != (options.record is None):
        raise ValueError("--gateway ENV and --record FILE belong together: give both")
    for given, name in ((options.engine_urls, "url"), (options.engine_args, "arg")):
        if given and options.engine == "hf":
            raise ValueError(
                f"--engine-{name} is for servers: add --engine vllm or --engine sglang"
            )
    bound = bind(options.host, options.port)
    with bound:
        folder = find_model_folder(options.model)
        tokenizer = load_tokenizer(folder)
        logging.basicConfig(format="palestra: %(message)s", level=logging.WARNING)
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host

        def on_ready() -> None:
            gc.collect()
            gc.freeze()  # what is loaded stays: the collector need not look at it again
            print(f"serving {', '.join(_names(options))} at http://{shown}:{port}/v1", flush=True)

        async def work() -> None:
            engine = await _open(options, folder, tokenizer)
            try:
                chat_format = ChatFormat.load(folder)
                gateway = None if options.gateway is None else Gateway(engine, chat_format)
                if gateway is not None and keys is not None:
                    keys.accepts = gateway.knows
                served = _served(options, engine, chat_format, tokenizer, keys, gateway)
                async with AsyncExitStack() as stack:
                    routers = []
                    if gateway is not None:
                        policy = TokenPolicy(engine, chat_format)
                        episodes = _open_episodes(options, gateway, policy, stack)
                        stack.push_async_callback(episodes.aclose)
                        routers.append(episode_routes(episodes))
                    await serve(
                        build_app(served, routers),
                        bound,
                        served.traffic,
                        drain_timeout_s=options.drain_timeout_s,
                        on_ready=on_ready,
                    )
            finally:
                ignore_further_signals()
                await engine.aclose()

        _run(work())
    return 0


def _run(work: Coroutine[Any, Any, None]) -> None:
    """On uvloop where it is installed, which is quicker."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        from uvloop import new_event_loop as loop_factory
    except ModuleNotFoundError:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work)


async def _open(options: ServeOptions, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Engine:
    longest = _longest_context(folder)
    context_length = options.context_length or min(longest or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
    if longest is not None and context_length > longest:
        raise ValueError(
            f"--context-length {context_length} is more than the model's {longest} tokens"
        )
    max_batch = options.max_batch or _DEFAULT_BATCH[options.engine]
    if options.engine != "hf":
        return await open_engine(
            EngineOptions(
                kind=options.engine,
                model=str(folder),
                context_length=context_length,
                max_concurrent=max_batch,
                dtype=options.dtype,
                urls=options.engine_urls,
                python=options.engine_python,
                extra_args=options.engine_args,
            )
        )
    from palestra.rollout.engine_hf import HFEngine
    from palestra.trainer.load import load_policy, silence_transformers

    silence_transformers()
    dtype = "float32" if options.dtype == "auto" else options.dtype
    model, _, chat_format = load_policy(folder, device=options.device, dtype=dtype)
    return HFEngine(
        model,
        stop_ids=chat_format.stop_ids,
        max_slots=max_batch,
        context_length=context_length,
        tokenizer=tokenizer,
    )


def _served(
    options: ServeOptions,
    engine: Engine,
    chat_format: ChatFormat,
    tokenizer: PreTrainedTokenizerBase,
    keys: ApiKeys | None,
    gateway: Gateway | None,
) -> Served:
    replier = ModelReplier(engine, chat_format, models=_names(options))

    def find_replier(request: Request) -> Replier:
        return replier

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text)
        return ids

    servers = max(1, len(options.engine_urls))
    return Served(
        find_replier=find_replier if gateway is None else gateway.beside(find_replier),
        find_session=None if gateway is None else gateway.find_replier,
        models=_names(options),
        context_length=engine.context_length,
        completer=TextCompleter(engine, encode=encode, token_bytes=chat_format.token_bytes),
        find_trouble=lambda: _trouble(engine, servers),
        keys=keys,
        limits=ServerLimits(
            max_body_bytes=int(options.max_body_mb * 2**20),
            requests_per_minute=options.rate_limit,
            max_concurrent=options.max_concurrent,
        ),
    )


def _open_episodes(
    options: ServeOptions, gateway: Gateway, policy: TokenPolicy, stack: AsyncExitStack
) -> RemoteEpisodes:
    """What records the episodes that agents ask for; `stack` closes its file."""
    env_id, record = options.gateway, options.record
    assert env_id is not None and record is not None
    return RemoteEpisodes(
        gateway,
        policy,
        lambda split: envs.make(env_id, split=split),
        recorder=stack.enter_context(Recorder(record)),
        split=options.split,
        limits=Limits(max_turns=options.max_turns),
        sampling=Sampling(temperature=options.temperature, max_tokens=options.max_tokens),
    )


def _trouble(engine: Engine, servers: int) -> str:
    """Why no reply can be had at the moment, "" if one can. Details are for the log."""
    if isinstance(engine, RoutedEngine) and len(engine.out_of_service) >= servers:
        return "the engine is not available"
    return ""


def _names(options: ServeOptions) -> tuple[str, ...]:
    """A folder is known by its own name, a hub model by its id."""
    path = Path(options.model)
    return options.names or (path.resolve().name if path.is_dir() else options.model,)


def _read_keys(options: ServeOptions) -> ApiKeys | None:
    if options.no_api_key and (options.api_key_env or options.api_keys_file):
        raise ValueError("--no-api-key contradicts --api-key-env and --api-keys-file: give one")
    if options.api_keys_file is not None:
        if options.api_key_env is not None:
            raise ValueError("give --api-key-env or --api-keys-file, not both")
        return ApiKeys.read(options.api_keys_file)
    if options.api_key_env is not None:
        key = os.environ.get(options.api_key_env)
        if not key:
            raise ValueError(f"--api-key-env: the variable {options.api_key_env} is not set")
        return ApiKeys([key])
    if not options.no_api_key and not _is_loopback(options.host):
        raise ValueError(
            f"without an API key whoever reaches {options.host} can use the model: give "
            "--api-key-env NAME or --api-keys-file FILE, or --no-api-key if that is meant"
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _longest_context(folder: Path) -> int | None:
    """How many tokens the model was made for; None where its configuration does not say."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    longest = config.get("max_position_embeddings")
    return longest if isinstance(longest, int) else None
