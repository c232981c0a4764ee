"""`TokenClient`: JSON over HTTP to one model server, at little CPU for long lists of tokens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from palestra.rollout.engine_errors import BadAnswer, ConnectionLost, RequestFailed

if TYPE_CHECKING:
    import aiohttp

# Servers close an idle connection after five seconds (uvicorn). Closing it earlier ourselves, none
# is lost by a request that is sent at that moment.
_KEEP_ALIVE_S = 3.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_BUSY = (429, 503)
_MAX_MESSAGE_CHARACTERS = 500


class TokenClient:
    """Requests to one server. It belongs to the event loop in which it sends its first request.

    Connections are reused, at most `max_connections` at once; further requests wait for one.
    Requests that no server has accepted (connection refused, or told to come later) are sent again
    for `retry_s` seconds, with growing, jittered pauses.

    `base_url` may be changed, for a server that was started again elsewhere.
    """

    def __init__(
        self,
        base_url: str,
        *,
        max_connections: int = 1024,
        api_key: str | None = None,
        retry_s: float = 10.0,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._max_connections = max_connections
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._retry_s = retry_s
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float,
        params: Mapping[str, str] | None = None,
        idempotent: bool = False,
    ) -> Any:
        """What the server answers, parsed; None where it answers nothing.

        `idempotent` requests are also sent again when the connection is lost. Cancelling closes the
        connection, by which the server learns of it.

        Raises:
            RequestFailed: an HTTP error, with the server's message.
            ConnectionLost: no server there, or it went away before it had answered.
            BadAnswer: what came is not JSON.
            TimeoutError: no answer after `timeout_s` seconds, retries included.
        """
        import orjson

        data = b"" if body is None else orjson.dumps(body)
        return await self._request("POST", path, data, params, timeout_s, idempotent)

    async def get(self, path: str, *, timeout_s: float) -> Any:
        """What the server answers, parsed, or as text where it is not JSON. Raises as `post`."""
        return await self._request("GET", path, None, None, timeout_s, True)

    async def close(self) -> None:
        """Close the connections; requests in progress fail. May be called more than once."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _request(
        self,
        method: str,
        path: str,
        data: bytes | None,
        params: Mapping[str, str] | None,
        timeout_s: float,
        idempotent: bool,
    ) -> Any:
        loop = asyncio.get_running_loop()
        started = loop.time()
        pause_s = _FIRST_PAUSE_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await self._send(method, path, data, params)
                    except RequestFailed as error:
                        if error.status not in _BUSY or loop.time() - started > self._retry_s:
                            raise
                    except _Refused as error:
                        if loop.time() - started > self._retry_s:
                            raise ConnectionLost(str(error)) from None
                    except ConnectionLost:
                        if not idempotent or loop.time() - started > self._retry_s:
                            raise
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except TimeoutError:
            raise TimeoutError(f"{self.base_url}{path} gave no answer in {timeout_s:g} s") from None

    async def _send(
        self, method: str, path: str, data: bytes | None, params: Mapping[str, str] | None
    ) -> Any:
        import aiohttp

        if self._session is None:
            self._session = self._open()
        where = self.base_url + path
        try:
            async with self._session.request(method, where, data=data, params=params) as response:
                content = await response.read()
                status, kind = response.status, response.content_type
        except aiohttp.ClientConnectorError as error:
            raise _Refused(f"{self.base_url} cannot be reached: {error.strerror}") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            reason = str(error) or type(error).__name__
            raise ConnectionLost(f"{where} went away before it had answered: {reason}") from None
        if status >= 400:
            raise RequestFailed(status, _message(content), where)
        if not content:
            return None
        return _parse(content, where) if kind == "application/json" else content.decode()

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._max_connections, keepalive_timeout=_KEEP_ALIVE_S
            ),
            timeout=aiohttp.ClientTimeout(total=None),  # deadlines are those of each request
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
        )


class _Refused(Exception):
    """No connection was made, so no server has seen the request."""


def _parse(content: bytes, where: str) -> Any:
    import orjson

    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadAnswer(f"{where} answered something that is not JSON: {error}") from None


def _message(content: bytes) -> str:
    """The server's words in one line, wherever in its answer they are."""
    import orjson

    try:
        told: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        told = content.decode(errors="replace")
    while isinstance(told, dict):
        told = next((told[key] for key in ("error", "message", "detail") if key in told), str(told))
    line = " ".join(str(told).split())
    return line if len(line) <= _MAX_MESSAGE_CHARACTERS else line[:_MAX_MESSAGE_CHARACTERS] + "…"
