"""`TokenClient`: JSON over HTTP to one model server, at little CPU for long lists of tokens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

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
_EVENT_MARK = b"data:"
_END_OF_EVENTS = b"[DONE]"

T = TypeVar("T")


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
        return await self._until_accepted(
            lambda: self._send("POST", path, data, params), path, timeout_s, idempotent=idempotent
        )

    async def post_stream(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float
    ) -> AsyncGenerator[list[Any], None]:
        """The server-sent events of the answer, parsed; those that have arrived come together.

        Closing the generator closes the connection, by which the server learns of it.

        Raises:
            RequestFailed, ConnectionLost, BadAnswer: as `post`, also in the middle of the answer.
            TimeoutError: no answer, or no more of it, for `timeout_s` seconds.
        """
        import aiohttp
        import orjson

        data = orjson.dumps(body)
        response = await self._until_accepted(
            lambda: self._begin("POST", path, data, silence_s=timeout_s), path, timeout_s
        )
        where = self.base_url + path
        try:
            if response.content_type != "text/event-stream":
                raise BadAnswer(f"{where} answered {response.content_type} instead of a stream")
            rest = b""
            while arrived := await response.content.readany():
                lines = (rest + arrived).split(b"\n")
                rest = lines.pop()
                if events := _parse_events(lines, where):
                    yield events
        except aiohttp.SocketTimeoutError:
            raise TimeoutError(f"{where} was silent for {timeout_s:g} s") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise _lost(error, where) from None
        finally:
            response.close()  # a connection whose answer was read to its end has gone back already

    async def get(self, path: str, *, timeout_s: float) -> Any:
        """What the server answers, parsed, or as text where it is not JSON. Raises as `post`."""
        return await self._until_accepted(
            lambda: self._send("GET", path), path, timeout_s, idempotent=True
        )

    async def close(self) -> None:
        """Close the connections; requests in progress fail. May be called more than once."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _until_accepted(
        self,
        send: Callable[[], Awaitable[T]],
        path: str,
        timeout_s: float,
        *,
        idempotent: bool = False,
    ) -> T:
        """What `send` returns, which is called again while nobody accepts the request."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        pause_s = _FIRST_PAUSE_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await send()
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
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Any:
        import aiohttp

        where = self.base_url + path
        async with await self._begin(method, path, data, params) as response:
            try:
                content = await response.read()
            except (aiohttp.ClientError, ConnectionError) as error:
                raise _lost(error, where) from None
        if not content:
            return None
        return (
            _parse(content, where)
            if response.content_type == "application/json"
            else content.decode()
        )

    async def _begin(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        params: Mapping[str, str] | None = None,
        silence_s: float | None = None,
    ) -> aiohttp.ClientResponse:
        """The beginning of an answer that is no error; whoever gets it closes it."""
        import aiohttp

        if self._session is None:
            self._session = self._open()
        where = self.base_url + path
        try:
            response = await self._session.request(
                method,
                where,
                data=data,
                params=params,
                timeout=aiohttp.ClientTimeout(total=None, sock_read=silence_s),
            )
            if response.status >= 400:
                async with response:
                    raise RequestFailed(response.status, _message(await response.read()), where)
        except aiohttp.ClientConnectorError as error:
            raise _Refused(f"{self.base_url} cannot be reached: {error.strerror}") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise _lost(error, where) from None
        return response

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


def _lost(error: Exception, where: str) -> ConnectionLost:
    reason = str(error) or type(error).__name__
    return ConnectionLost(f"{where} went away before it had answered: {reason}")


def _parse_events(lines: list[bytes], where: str) -> list[Any]:
    """What the events in these lines say, but for the mark of their end."""
    events = []
    for line in lines:
        if line.startswith(_EVENT_MARK):
            said = line[len(_EVENT_MARK) :].strip()
            if said != _END_OF_EVENTS:
                events.append(_parse(said, where))
    return events


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
