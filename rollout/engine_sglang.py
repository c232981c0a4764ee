"""`SGLangEngine`: samples on an SGLang server, token ids in and out, started or attached to."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from palestra.rollout.engine import KvAfterUpdate, Piece, Probe, UpdateMode
from palestra.rollout.engine_errors import (
    BadAnswer,
    ContextOverflow,
    EngineError,
    UnsupportedServer,
)
from palestra.rollout.engine_python import has_gpu
from palestra.rollout.served_engine import ServedEngine, start_server
from palestra.rollout.sglang_launch import sglang_command, sglang_environment
from palestra.rollout.sglang_traits import (
    ServerTraits,
    read_traits,
    require_processed_logprobs,
)
from palestra.rollout.sglang_update import (
    Gate,
    SGLangWeights,
    Transfer,
    one_update,
)
from palestra.rollout.sglang_wire import (
    GENERATE,
    PieceReader,
    generate_body,
    is_truncated,
    read_completion,
    read_scores,
    require_known,
    score_body,
)
from palestra.rollout.token_client import TokenClient
from palestra.types import Completion, Sampling

_QUICK_S = 60.0


class SGLangEngine(ServedEngine):
    """Samples on one SGLang server. Made by `attach` or `launch`; belongs to one event loop.

    Every generation can be cancelled, which frees the server at once. Seeds only work where the
    server has `--enable-deterministic-inference` (`traits.seeded`), which needs a GPU. A reply also
    ends at the model's own end of text, whatever `stop_ids` say.

    A server that was started again gets the weights of the last update from a folder.
    """

    name = "SGLang"

    def __init__(
        self,
        client: TokenClient,
        control: TokenClient,
        traits: ServerTraits,
        *,
        stop_ids: frozenset[int],
        context_length: int,
        version: int,
        timeout_s: float,
    ) -> None:
        super().__init__(
            client,
            control,
            stop_ids=stop_ids,
            context_length=context_length,
            version=version,
            timeout_s=timeout_s,
        )
        self.traits = traits
        self._gate = Gate()
        self._weights = SGLangWeights(control, self._gate, traits, timeout_s=timeout_s)
        self._aborts: set[asyncio.Task[None]] = set()

    @staticmethod
    async def attach(
        base_url: str,
        *,
        stop_ids: frozenset[int],
        context_length: int | None = None,
        vocab_size: int | None = None,
        version: int | None = None,
        max_concurrent: int = 256,
        timeout_s: float = 600.0,
        api_key: str | None = None,
    ) -> SGLangEngine:
        """An engine on a running server, after finding out whether it can be trained with.

        Args:
            base_url: e.g. "http://127.0.0.1:30000".
            stop_ids: tokens that end a reply (`ChatFormat.stop_ids`).
            context_length: at most what the server takes, which is the default.
            vocab_size: of the model; needed where the model's folder is not on this machine.
            version: of the weights that it serves; by default what it says, else 0.
            max_concurrent: generations at once; more wait here.
            timeout_s: for each generation, waiting included.

        Raises:
            ConnectionLost: there is no server.
            UnsupportedServer: it is not SGLang, too old, or lacks what is needed.
            RawLogprobs: its log-probabilities are those before temperature.
        """
        client = TokenClient(base_url, max_connections=max_concurrent, api_key=api_key)
        control = TokenClient(base_url, api_key=api_key)
        try:
            traits = await read_traits(control, vocab_size)
            if context_length is not None and context_length > traits.context_length:
                raise UnsupportedServer(
                    f"{base_url} takes {traits.context_length} tokens, {context_length} are "
                    "needed: start it with a larger --context-length or --max-total-tokens"
                )
            engine = SGLangEngine(
                client,
                control,
                traits,
                stop_ids=stop_ids,
                context_length=context_length or traits.context_length,
                version=version if version is not None else traits.version or 0,
                timeout_s=timeout_s,
            )
            await require_processed_logprobs(client, traits)
        except BaseException:
            await client.close()
            await control.close()
            raise
        return engine

    @staticmethod
    async def launch(
        model_folder: str | Path,
        *,
        stop_ids: frozenset[int],
        context_length: int,
        dtype: str = "float32",
        max_concurrent: int = 256,
        kv_cache_tokens: int | None = None,
        on_gpu: bool | None = None,
        python: str | Path | None = None,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        log_folder: str | Path | None = None,
        start_timeout_s: float = 300.0,
        timeout_s: float = 600.0,
    ) -> SGLangEngine:
        """Start a server for the model in a folder, and an engine on it.

        Args:
            dtype: "float32", "bfloat16", ...: what the server computes in.
            kv_cache_tokens: how many tokens' keys and values it keeps; by default 16,384 or two
                contexts without a GPU, and SGLang's own choice with one.
            on_gpu: by default whether this machine has one.
            python: the interpreter of an environment with SGLang; see `find_python`.
            extra_args, env: more of SGLang's arguments and environment variables.
            log_folder: where sglang.log goes; by default a folder that goes with the engine.

        Raises:
            ServerNotStarted: it does not start, with the reason.
        """
        if on_gpu is None:
            on_gpu = has_gpu()
        command = sglang_command(
            Path(model_folder),
            python=python,
            dtype=dtype,
            context_length=context_length,
            max_concurrent=max_concurrent,
            on_gpu=on_gpu,
            kv_cache_tokens=kv_cache_tokens,
            extra_args=extra_args,
        )
        return await start_server(
            command,
            partial(
                SGLangEngine.attach,
                stop_ids=stop_ids,
                context_length=context_length,
                version=0,
                max_concurrent=max_concurrent,
                timeout_s=timeout_s,
            ),
            name="SGLang",
            env={**sglang_environment(on_gpu=on_gpu), **(env or {})},
            log_folder=log_folder,
            start_timeout_s=start_timeout_s,
        )

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """See `Engine`.

        Raises:
            ContextOverflow: the prompt is empty or leaves no room in the context.
            UnknownToken: an id is not in the vocabulary.
            UnsupportedServer: a structure is asked for and the server has no grammars.
            RawLogprobs: top-p or top-k whose log-probabilities the server does not tell.
            BadLogprobs, BadAnswer: what the server answers cannot be trained on.
            ServerDied, ConnectionLost: the server went away.
            RequestFailed: the server refused.
            TimeoutError: no answer in time.
        """
        body = self._body(prompt_ids, sampling)
        try:
            answer = await self._ask(body)
        except (asyncio.CancelledError, TimeoutError):
            self._abort(body["rid"])
            raise
        completion = read_completion(
            answer,
            vocab_size=self.traits.vocab_size,
            truncated=is_truncated(sampling),
            version_of=self._version_of,
        )
        self._note_completion()
        return replace(completion, version_spans=self._tell_kv(completion.version_spans))

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """See `Engine`. Raises as `generate`, also when it has begun; TimeoutError when the server
        falls silent."""
        body = self._body(prompt_ids, sampling, top_logprobs=top_logprobs, stream=True)
        reader = PieceReader(
            top_logprobs=top_logprobs,
            vocab_size=self.traits.vocab_size,
            truncated=is_truncated(sampling),
            version_of=self._version_of,
        )
        last = None
        await self._until_up()
        try:
            async with self._gate.enter(), aclosing(self._post_stream(GENERATE, body)) as answer:
                async for events in answer:
                    piece = reader.read(events)
                    if piece.stop_reason is not None:
                        last = piece  # kept until the answer is read, for its connection's sake
                    elif piece.ids:
                        yield piece
        except (asyncio.CancelledError, GeneratorExit, TimeoutError):
            self._abort(body["rid"])
            raise
        if last is None:
            raise BadAnswer(f"SGLang's stream ended after {reader.count} tokens without a reason")
        self._note_completion()
        yield replace(last, version_spans=self._tell_kv(last.version_spans))

    async def generate_group(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int
    ) -> list[Completion]:
        """Sample `n` completions of one prompt, which is computed once. Raises as `generate`.

        They are requests of their own, since SGLang's `n` gives all of them the same seed and none
        can be cancelled. A seed is that of the first; the others have those after it.
        """
        self._require_fitting(prompt_ids)
        if n > 1:
            await self._ask(score_body(prompt_ids, start=-1))
        seeds = [None if sampling.seed is None else sampling.seed + i for i in range(n)]
        tasks = [
            asyncio.create_task(self.generate(prompt_ids, replace(sampling, seed=seed)))
            for seed in seeds
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """See `Engine`. Raises as `generate`.

        SGLang computes every key afresh for this: it neither uses the prefix cache nor tells
        whether that is up to date.
        """
        if not 0 < len(token_ids) <= self.context_length:
            raise ContextOverflow(
                f"a text of {len(token_ids)} tokens cannot be scored: it needs 1 to "
                f"{self.context_length} (context_length {self.context_length})"
            )
        require_known(token_ids, self.traits.vocab_size)
        if len(token_ids) == 1:
            return ()
        return read_scores(await self._ask(score_body(token_ids)), token_ids)

    async def update_weights(
        self,
        version: int,
        folder: str | Path | None = None,
        *,
        tensors: Sequence[tuple[str, Any]] | None = None,
        probe: Probe | None = None,
        mode: UpdateMode = "wait",
        kv_after_update: KvAfterUpdate = "recompute",
        transfer: Transfer = "tensor",
    ) -> None:
        """Change what the server serves and check that it does. Further calls wait their turn.

        Args:
            version: of the new weights; what is sampled from now on carries it.
            folder: safetensors with all weights, where the server can read it.
            tensors: instead of a folder, the checkpoint's names and tensors.
            probe: what is scored afterwards; without one only the version is checked.
            mode: what happens to generations in progress: "wait" lets them end first, "keep" halts
                them and goes on with the new weights, "abort" ends them with what they have. Those
                of other clients of the server are halted.
            kv_after_update: "recompute" drops the keys that older weights computed, those of halted
                generations too (SGLang's "retract"); "keep" lets later tokens attend to them (its
                "in_place").
            transfer: "tensor" sends tensors in the request, by value or, from a GPU, as handles on
                its memory; "distributed" broadcasts them (NCCL, or Gloo from a CPU).

        Raises:
            ValueError: the weights do not fit or cannot be read; the server serves what it did.
            StaleWeights: it does not serve them; its message names what is stale.
            EngineError, TimeoutError: the server failed or did not answer.
        """
        update = one_update(
            version,
            folder,
            tensors,
            transfer=transfer,
            probe=probe,
            mode=mode,
            kv_after_update=kv_after_update,
        )
        await self._until_up()
        self._kv_after_update[version] = kv_after_update
        await self._weights.update(update)
        self.version = version

    async def aclose(self) -> None:
        """See `ServedEngine`."""
        await asyncio.gather(*self._aborts, return_exceptions=True)
        await super().aclose()

    async def _ask(self, body: Mapping[str, Any]) -> Any:
        """What the server answers to a generation, which waits while weights change."""
        await self._until_up()
        async with self._gate.enter():
            return await self._post(GENERATE, body)

    def _body(
        self, prompt_ids: Sequence[int], sampling: Sampling, **options: Any
    ) -> dict[str, Any]:
        """The request for a completion. Raises as `generate`."""
        room = self._require_fitting(prompt_ids)
        if sampling.structure is not None and not self.traits.grammar:
            raise UnsupportedServer(
                "the server has no grammars for structured replies: start it with "
                "--grammar-backend xgrammar"
            )
        if self.traits.seeded and sampling.seed is None:
            # Without a seed SGLang would give every generation the same one.
            sampling = replace(sampling, seed=secrets.randbits(63))
        return generate_body(
            prompt_ids,
            sampling,
            max_tokens=min(sampling.max_tokens, room),
            stop_ids=self._stop_ids,
            request_id=uuid.uuid4().hex,
            max_support=self.traits.max_support,
            vocab_size=self.traits.vocab_size,
            **options,
        )

    def _abort(self, request_id: str) -> None:
        """Free the server of a request whose answer nobody waits for."""

        async def abort() -> None:
            with suppress(EngineError, TimeoutError):
                await self.control.post("/abort_request", {"rid": request_id}, timeout_s=_QUICK_S)

        task = asyncio.create_task(abort())
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _restore_weights(self) -> None:
        """See `ServedEngine`: those of the last update from a folder."""
        self.version = await self._weights.restore(otherwise=self._first_version)

    def _require_fitting(self, prompt_ids: Sequence[int]) -> int:
        """How many tokens may follow a prompt. Raises ContextOverflow or UnknownToken."""
        room = self._require_room(prompt_ids)
        require_known(prompt_ids, self.traits.vocab_size)
        return room
