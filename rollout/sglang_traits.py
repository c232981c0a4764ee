"""What an SGLang server says of itself, and whether it can be trained with."""

from __future__ import annotations

import logging
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from palestra.rollout.engine_errors import BadAnswer, RequestFailed, UnsupportedServer
from palestra.rollout.logprob_probe import PROBE_TEMPERATURE, require_processed
from palestra.rollout.served_engine import read_vocab_size
from palestra.rollout.sglang_wire import (
    GENERATE,
    generate_body,
    read_completion,
    read_top_logprobs,
)
from palestra.rollout.token_client import TokenClient
from palestra.types import Sampling

_log = logging.getLogger(__name__)

OLDEST_VERSION = (0, 5, 23)  # as tested
_PROBE_IDS = tuple(range(8))
_QUICK_S = 60.0
_DEFAULT_MAX_SUPPORT = 4096
_BARREN_BACKENDS = (None, "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerTraits:
    """What a server says of itself.

    `seeded`: it samples by each request's seed. `max_support`: of how many tokens it tells
    log-probabilities after top-k and top-p. `model_folder` need not be on this machine. Prompts are
    cached in pages of `page_size` tokens, None where it does not say.
    """

    model_folder: Path
    context_length: int
    vocab_size: int
    seeded: bool
    grammar: bool
    max_support: int
    page_size: int | None
    version: int | None


async def read_traits(client: TokenClient, vocab_size: int | None = None) -> ServerTraits:
    """Ask a server what it is. `vocab_size` is needed where its model is not on this machine.

    Raises:
        UnsupportedServer: it is not SGLang, too old, or does not say what it serves.
        ConnectionLost: there is no server.
    """
    where = client.base_url
    oldest = ".".join(map(str, OLDEST_VERSION))
    try:
        server = await client.get("/server_info", timeout_s=_QUICK_S)
        told = str(server["version"])
        match = re.match(r"(\d+)\.(\d+)\.(\d+)", told)
        if match is None:
            raise ValueError(f"version {told!r}")
        version = tuple(map(int, match.groups()))
    except (RequestFailed, TypeError, KeyError, ValueError) as error:
        raise UnsupportedServer(
            f"{where} is no SGLang server: it does not say its version ({error})"
        ) from None
    if version < OLDEST_VERSION:
        raise UnsupportedServer(f"{where} is SGLang {told}, {oldest} or newer is needed")
    try:
        model = await client.get("/model_info", timeout_s=_QUICK_S)
        folder = Path(model["model_path"])
        name = str(model["weight_version"])
        longest = int(server["max_req_input_len"]) - 1
    except (RequestFailed, TypeError, KeyError, ValueError) as error:
        raise UnsupportedServer(f"{where} does not say what it serves ({error!r})") from None
    vocab_size = vocab_size or read_vocab_size(folder)
    if vocab_size is None:
        raise UnsupportedServer(
            f"{where} serves {folder}, whose config.json cannot be read here: pass vocab_size, "
            "since a token beyond it would end the server"
        )
    seeded = bool(server.get("enable_deterministic_inference"))
    if not seeded:
        _log.info("%s ignores seeds: it runs without --enable-deterministic-inference", where)
    page_size = server.get("page_size")
    return ServerTraits(
        model_folder=folder,
        context_length=longest,
        vocab_size=vocab_size,
        seeded=seeded,
        grammar=server.get("grammar_backend") not in _BARREN_BACKENDS,
        max_support=int(server.get("sampling_mask_max_tokens") or _DEFAULT_MAX_SUPPORT),
        page_size=page_size if isinstance(page_size, int) and page_size > 0 else None,
        version=int(name) if name.isdecimal() else None,
    )


async def require_processed_logprobs(client: TokenClient, traits: ServerTraits) -> None:
    """Probe what the log-probabilities are of, at a temperature that makes a difference.

    Raises:
        RawLogprobs: they are those before temperature.
        BadLogprobs: there are none, or not for each token.
        UnsupportedServer: it does not say which weights sampled each token.
    """
    tops = []
    for temperature in (1.0, PROBE_TEMPERATURE):
        body = generate_body(
            _PROBE_IDS,
            Sampling(temperature=temperature),
            max_tokens=1,
            stop_ids=(),
            request_id=uuid.uuid4().hex,
            max_support=traits.max_support,
            vocab_size=traits.vocab_size,
            top_logprobs=5,
        )
        answer = await client.post(GENERATE, body, timeout_s=_QUICK_S)
        try:
            read_completion(
                answer, vocab_size=traits.vocab_size, truncated=False, version_of=lambda _: 0
            )
        except BadAnswer as error:
            raise UnsupportedServer(f"{client.base_url} cannot be trained with: {error}") from None
        tops.append(read_top_logprobs(answer))
    require_processed(
        *tops,
        temperature=PROBE_TEMPERATURE,
        remedy="start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB",
    )
