"""`Gateway`: agents talk to a policy under secret base URLs, one for each recorded episode."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from palestra.rollout.episode import Limits
from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.api_keys import find_key
from palestra.rollout.serving.gateway_session import GatewaySession, episode_closed
from palestra.types import Sampling

if TYPE_CHECKING:
    from starlette.requests import Request

    from palestra.rollout.chat_format import ChatFormat
    from palestra.rollout.engine import Engine
    from palestra.rollout.serving.find_replier import FindReplier
    from palestra.rollout.serving.reply import Replier

# Of so many closed episodes it is known that they are closed and not of somebody's invention.
_MOST_REMEMBERED = 100_000


class Gateway:
    """Sessions by their secret keys.

    A key is in its episode's base URL, `/episodes/{key}/v1`, and is also taken as the API key of a
    request to `/v1`. Sessions are opened and closed by whoever plays the episode.

    `url` is where the gateway can be reached, "" as long as nobody knows.
    """

    def __init__(self, engine: Engine, chat_format: ChatFormat) -> None:
        self.url = ""
        self._engine = engine
        self._chat_format = chat_format
        self._sessions: dict[str, GatewaySession] = {}
        self._closed: OrderedDict[str, None] = OrderedDict()

    @property
    def context_length(self) -> int:
        """Of the policy, in tokens."""
        return self._engine.context_length

    def open(
        self,
        *,
        sampling: Sampling,
        limits: Limits,
        seed_of: Callable[[int], int],
        lane: AbstractAsyncContextManager[None] | None = None,
    ) -> tuple[str, GatewaySession]:
        """A new session and its key; see `GatewaySession`."""
        session = GatewaySession(
            self._engine,
            self._chat_format,
            sampling=sampling,
            limits=limits,
            seed_of=seed_of,
            lane=lane,
        )
        key = f"ep-{secrets.token_urlsafe(24)}"
        self._sessions[key] = session
        return key, session

    def close(self, key: str) -> None:
        """End a session: its requests are refused, those in progress cut. May be called again."""
        session = self._sessions.pop(key, None)
        if session is None:
            return
        session.close()
        self._closed[key] = None
        if len(self._closed) > _MOST_REMEMBERED:
            self._closed.popitem(last=False)

    def find(self, key: str) -> GatewaySession:
        """The open session of a key.

        Raises:
            ApiError: 410 for one that is closed, 404 for one that never was.
        """
        if (session := self._sessions.get(key)) is not None:
            return session
        if key in self._closed:
            raise episode_closed()
        raise ApiError(
            404, "there is no such episode: is its key in the base URL?", code="unknown_episode"
        )

    def find_replier(self, request: Request) -> GatewaySession:
        """The session of a request: by the key in its path, else by its API key.

        Raises:
            ApiError: as `find`, or 401 where no key is an episode's.
        """
        key = request.path_params.get("key")
        if key is not None:
            return self.find(key)
        key = find_key(request.scope["headers"])
        if key is None or not self.knows(key):
            raise ApiError(
                401, "the API key is that of no recorded episode", code="invalid_api_key"
            )
        return self.find(key)

    def beside(self, otherwise: FindReplier) -> FindReplier:
        """Finds sessions by their keys, and `otherwise` where a request has none of these."""

        def find(request: Request) -> Replier:
            key = find_key(request.scope["headers"])
            if "key" in request.path_params or (key is not None and self.knows(key)):
                return self.find_replier(request)
            return otherwise(request)

        return find

    def knows(self, key: str) -> bool:
        """Whether it is the key of a session, open or closed."""
        return key in self._sessions or key in self._closed

    def is_open(self, key: str) -> bool:
        """Whether it is the key of an open session."""
        return key in self._sessions
