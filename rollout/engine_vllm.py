"""`VLLMEngine`: samples on a vLLM server, token ids in and out, started here or attached to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from palestra.rollout.engine import KvAfterUpdate, Piece, Probe, UpdateMode
from palestra.rollout.engine_errors import (
    BadAnswer,
    ContextOverflow,
    RequestFailed,
    UnknownToken,
    UnsupportedServer,
)
from palestra.rollout.served_engine import ServedEngine, start_server
from palestra.rollout.token_client import TokenClient
from palestra.rollout.vllm_inspect import (
    find_endpoint,
    read_model,
    read_version,
    require_processed_logprobs,
    require_version,
)
from palestra.rollout.vllm_launch import vllm_command, vllm_environment
from palestra.rollout.vllm_wire import (
    PATHS,
    Endpoint,
    generate_body,
    read_completions,
    read_piece,
    read_scores,
    score_body,
)
from palestra.rollout.weight_update import WeightUpdater
from palestra.types import Completion, Sampling, VersionSpan


class VLLMEngine(ServedEngine):
    """Samples on one vLLM server. Made by `attach` or `launch`; belongs to one event loop.

    `model_name` is what requests ask for; `weights` changes what is served.
    """

    name = "vLLM"

    def __init__(
        self,
        client: TokenClient,
        control: TokenClient,
        *,
        model_name: str,
        endpoint: Endpoint,
        stop_ids: frozenset[int],
        context_length: int,
        vocab_size: int | None,
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
        self.model_name = model_name
        self.endpoint = endpoint
        self.vocab_size = vocab_size
        self.weights = WeightUpdater(control, model_name, timeout_s=timeout_s)

    @staticmethod
    async def attach(
        base_url: str,
        *,
        stop_ids: frozenset[int],
        context_length: int | None = None,
        vocab_size: int | None = None,
        version: int | None = None,
        endpoint: Endpoint | None = None,
        max_concurrent: int = 256,
        timeout_s: float = 600.0,
        api_key: str | None = None,
    ) -> VLLMEngine:
        """An engine on a running server, after finding out whether it can be trained with.

        Args:
            base_url: e.g. "http://127.0.0.1:8000".
            stop_ids: tokens that end a reply (`ChatFormat.stop_ids`).
            context_length: at most the server's own, which is the default.
            vocab_size: of the model; by default read from its folder, where that is on this
                machine.
            version: of the weights that it serves; by default what it says, else 0.
            endpoint: "generate" or "completions"; by default the first that the server has.
            max_concurrent: generations at once; more wait here.
            timeout_s: for each generation, waiting included.

        Raises:
            ConnectionLost: there is no server.
            UnsupportedServer: it is not vLLM, too old, or lacks what is needed.
            RawLogprobs: its log-probabilities are those before temperature.
        """
        client = TokenClient(base_url, max_connections=max_concurrent, api_key=api_key)
        control = TokenClient(base_url, api_key=api_key)
        try:
            await require_version(control)
            model = await read_model(control)
            if context_length is not None and context_length > model.context_length:
                raise UnsupportedServer(
                    f"{base_url} has a context of {model.context_length} tokens, {context_length} "
                    f"are needed: start it with --max-model-len {context_length}"
                )
            if endpoint is None:
                endpoint = await find_endpoint(control, model.name, timeout_s=timeout_s)
            await require_processed_logprobs(control, endpoint, model.name, timeout_s=timeout_s)
            return VLLMEngine(
                client,
                control,
                model_name=model.name,
                endpoint=endpoint,
                stop_ids=stop_ids,
                context_length=context_length or model.context_length,
                vocab_size=vocab_size or model.vocab_size,
                version=await read_version(control) if version is None else version,
                timeout_s=timeout_s,
            )
        except BaseException:
            await client.close()
            await control.close()
            raise

    @staticmethod
    async def launch(
        model_folder: str | Path,
        *,
        stop_ids: frozenset[int],
        context_length: int,
        dtype: str = "float32",
        max_concurrent: int = 256,
        kv_cache_gib: float | None = None,
        python: str | Path | None = None,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        log_folder: str | Path | None = None,
        start_timeout_s: float = 300.0,
        timeout_s: float = 600.0,
    ) -> VLLMEngine:
        """Start a server for the model in a folder, and an engine on it.

        Args:
            dtype: "float32", "bfloat16", ...: what the server computes in.
            kv_cache_gib: memory for keys and values; by default 1 without a GPU, and vLLM's own
                choice with one.
            python: the interpreter of an environment with vLLM; see `find_python`.
            extra_args, env: more of vLLM's arguments and environment variables.
            log_folder: where vllm.log goes; by default a temporary folder that `aclose` removes.

        Raises:
            ServerNotStarted: it does not start, with the reason.
        """
        command = vllm_command(
            Path(model_folder),
            python=python,
            dtype=dtype,
            context_length=context_length,
            max_concurrent=max_concurrent,
            kv_cache_gib=kv_cache_gib,
            extra_args=extra_args,
        )
        return await start_server(
            command,
            partial(
                VLLMEngine.attach,
                stop_ids=stop_ids,
                context_length=context_length,
                version=0,
                max_concurrent=max_concurrent,
                timeout_s=timeout_s,
            ),
            name="vLLM",
            env={**vllm_environment(), **(env or {})},
            log_folder=log_folder,
            start_timeout_s=start_timeout_s,
        )

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """See `Engine`. Raises as `generate_group`."""
        return (await self.generate_group(prompt_ids, sampling, 1))[0]

    async def generate_group(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int
    ) -> list[Completion]:
        """Sample `n` completions of one prompt, which is computed once.

        Raises:
            ContextOverflow: the prompt is empty or leaves no room in the context.
            UnknownToken: an id is not in the vocabulary.
            BadLogprobs, BadAnswer: what the server answers cannot be trained on.
            ServerDied, ConnectionLost: the server went away.
            RequestFailed: the server refused.
            TimeoutError: no answer in time.
        """
        body = self._body(prompt_ids, sampling, n=n)
        await self._until_up()
        version = self.version
        answer = await self._post(PATHS[self.endpoint], body)
        completions = read_completions(
            answer, self.endpoint, n=n, vocab_size=self.vocab_size, version_of=self._version_of
        )
        self._note_completion()
        return [
            replace(
                completion,
                version_spans=self._spans(completion.version_spans, len(completion.ids), version),
            )
            for completion in completions
        ]

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """See `Engine`. Raises as `generate_group`, also when it has begun; TimeoutError when the
        server falls silent. The server's --max-logprobs must be above `top_logprobs`."""
        body = self._body(prompt_ids, sampling, top_logprobs=top_logprobs, stream=True)
        await self._until_up()
        version = self.version
        count = 0
        last = None
        async with aclosing(self._post_stream(PATHS[self.endpoint], body)) as answer:
            async for events in answer:
                piece = read_piece(
                    events,
                    self.endpoint,
                    top_logprobs=top_logprobs,
                    vocab_size=self.vocab_size,
                    version_of=self._version_of,
                )
                count += len(piece.ids)
                if piece.stop_reason is not None:
                    last = piece  # kept until the answer is read, for its connection's sake
                elif piece.ids:
                    yield piece
        if last is None:
            raise BadAnswer(f"vLLM's stream ended after {count} tokens without a reason")
        self._note_completion()
        yield replace(last, version_spans=self._spans(last.version_spans, count, version))

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """See `Engine`. Raises as `generate_group`.

        vLLM computes every key afresh for this: it neither uses the prefix cache nor tells whether
        that is up to date.
        """
        if not 0 < len(token_ids) < self.context_length:  # it samples a token that nobody wants
            raise ContextOverflow(
                f"a text of {len(token_ids)} tokens cannot be scored: it needs 1 to "
                f"{self.context_length - 1} (context_length {self.context_length})"
            )
        if len(token_ids) == 1:
            return ()
        await self._until_up()
        body = score_body(self.model_name, token_ids)
        answer = await self._post(PATHS["completions"], body)
        return read_scores(answer, len(token_ids))

    async def update_weights(
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
        """Change the running server's weights and check that it serves them.

        See `WeightUpdater.update`, also for what it raises.
        """
        await self._until_up()
        self._kv_after_update[version] = kv_after_update
        await self.weights.update(
            version,
            folder,
            lora=lora,
            tensors=tensors,
            probe=probe,
            mode=mode,
            kv_after_update=kv_after_update,
        )
        self._note_weights()

    async def _restore_weights(self) -> None:
        """Give a server that was started again the weights that it had last."""
        await self.weights.restore()
        self._note_weights()

    def _spans(
        self, told: tuple[VersionSpan, ...], count: int, version: int
    ) -> tuple[VersionSpan, ...]:
        """Those of `count` tokens; all are of `version` where the server told none."""
        if count and not told:
            told = (VersionSpan(version=version, start=0, end=count),)
        return self._tell_kv(told)

    def _note_weights(self) -> None:
        self.model_name = self.weights.model
        if self.weights.version is not None:
            self.version = self.weights.version

    def _body(
        self, prompt_ids: Sequence[int], sampling: Sampling, **options: Any
    ) -> dict[str, Any]:
        """The request for completions. Raises ContextOverflow."""
        room = self._require_room(prompt_ids)
        return generate_body(
            self.endpoint,
            self.model_name,
            prompt_ids,
            sampling,
            max_tokens=min(sampling.max_tokens, room),
            stop_ids=self._stop_ids,
            **options,
        )

    @asynccontextmanager
    async def _naming_troubles(self) -> AsyncIterator[None]:
        """See `ServedEngine`."""
        try:
            async with super()._naming_troubles():
                yield
        except RequestFailed as error:
            if "out of vocabulary" in error.message:
                raise UnknownToken(f"{error.message}: the prompt is of another model") from None
            raise
