"""`Connection`: single requests to a server through the `openai` package, on one event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from palestra.endpoint.exchange import (
    DISPENSABLE,
    EndpointError,
    Reply,
    Request,
    error_of_status,
    read_reply,
    shown,
)
from palestra.endpoint.limits import Gate, quota_wait_s
from palestra.endpoint.usage import Meter

if TYPE_CHECKING:
    import openai


class Connection:
    """A client of the `openai` package without its retries, and the gate before it.

    Belongs to the loop that runs when it is made. It closes itself there once nobody has it.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        gate: Gate,
    ) -> None:
        import openai

        self.loop = asyncio.get_running_loop()
        self.gate = gate
        self._base_url = base_url
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            max_retries=0,
            default_headers=headers,
            # The client's own closes itself on whatever loop runs when it is collected.
            http_client=openai.DefaultAsyncHttpxClient(),
        )
        self._refused: dict[str, frozenset[str]] = {}
        weakref.finalize(self, _close, self._client, self.loop).atexit = False

    async def ask(self, request: Request, meter: Meter, *, is_retry: bool) -> Reply:
        """Ask once, or again without a parameter that the model refuses, which is remembered."""
        refused = self._refused.get(request.model, frozenset())
        retries = int(is_retry)
        while True:
            body = request.body(refused)
            meter.add(requests=1, retries=retries)
            try:
                reply = await self._post(body)
            except EndpointError as error:
                # Servers that do not say which parameter they mean mostly mean this one.
                parameter = error.parameter or "response_format"
                if error.kind != "rejected" or parameter not in DISPENSABLE:
                    raise
                if parameter not in body:
                    raise
                refused |= {parameter}
                retries = 1
            else:
                self._refused[request.model] = refused
                return reply

    async def _post(self, body: dict[str, Any]) -> Reply:
        import httpx
        import openai

        try:
            async with asyncio.timeout(self._timeout_s):  # httpx's own limit is between two reads
                response = await self._client.chat.completions.with_raw_response.create(
                    model=body["model"],
                    messages=cast(Any, body["messages"]),
                    extra_body=body,
                    timeout=self._timeout_s,
                )
        except (TimeoutError, openai.APITimeoutError):
            raise EndpointError("timeout", f"no reply in {self._timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            what = f"{self._base_url}: {error.__cause__ or error!r}"
            raise EndpointError("unreachable", shown(what, self._api_key)) from None
        except openai.APIStatusError as error:
            raise error_of_status(error, self._api_key) from None
        except (openai.OpenAIError, httpx.HTTPError) as error:
            raise EndpointError("malformed", shown(repr(error), self._api_key)) from None
        quota_s = quota_wait_s(response.headers)
        if quota_s:
            self.gate.pause(quota_s)
        return read_reply(response.text, body["model"])


def _close(client: openai.AsyncOpenAI, loop: asyncio.AbstractEventLoop) -> None:
    """From any thread; not from a forked child, whose loop is another."""

    async def close() -> None:
        await client.close()

    if loop.is_running():
        asyncio.run_coroutine_threadsafe(close(), loop)
