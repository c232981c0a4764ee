"""The process in which rollouts on a served engine run; `RolloutProcess` starts it and talks to it.

It ends when its parent does: the connection closes then.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from multiprocessing.connection import Connection
from typing import Any

from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.engine import Engine, Probe
from palestra.rollout.engine_options import EngineOptions, open_engine
from palestra.rollout.policy import TokenPolicy
from palestra.rollout.request import RolloutRequest, TaskIndex, play


class Worker:
    """Answers the parent's requests, several at once; every answer carries its request's number."""

    def __init__(self, connection: Connection, engine: Engine, options: EngineOptions) -> None:
        self._connection = connection
        self._engine = engine
        self._options = options
        self._policy = TokenPolicy(engine, ChatFormat.load(options.model))
        self._index = TaskIndex()
        self._running: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Until the parent says so or is gone."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                frame = json.loads(await loop.run_in_executor(None, self._connection.recv_bytes))
                number = frame["number"]
                if frame["op"] == "close":
                    return
                if frame["op"] == "cancel":
                    if number in self._running:
                        self._running[number].cancel()
                    continue
                self._running[number] = asyncio.create_task(self._answer(frame))
        except (EOFError, ConnectionResetError):
            pass
        finally:
            running = list(self._running.values())
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _answer(self, frame: dict[str, Any]) -> None:
        number = frame["number"]
        try:
            if frame["op"] == "play":
                request = RolloutRequest.from_json(frame["request"])
                async for episode in play(request, self._policy, self._index):
                    self._send({"number": number, "episode": episode.to_json()})
            else:
                probe = frame["probe"] and {
                    **frame["probe"],
                    "token_ids": tuple(frame["probe"]["token_ids"]),
                    "logprobs": tuple(frame["probe"]["logprobs"]),
                }
                await self._engine.update_weights(
                    frame["version"],
                    frame["folder"],
                    probe=Probe(**probe) if probe else None,
                    mode=self._options.update_mode,
                    kv_after_update=self._options.kv_after_update,
                )
            self._send({"number": number, "done": True})
        except asyncio.CancelledError:
            self._send({"number": number, "done": True})
            raise
        except Exception as error:
            self._send({"number": number, "error": describe(error)})
        finally:
            del self._running[number]

    def _send(self, frame: dict[str, Any]) -> None:
        send(self._connection, frame)


def describe(error: Exception) -> tuple[str, str]:
    """What the parent raises: the kind by name, a kind of ValueError as one, and the message."""
    kind = ValueError if isinstance(error, ValueError) else type(error)
    return kind.__name__, str(error)


def send(connection: Connection, frame: dict[str, Any]) -> None:
    """Write one frame. Half a character, which UTF-8 cannot encode, becomes its JSON escape."""
    text = json.dumps(frame, ensure_ascii=False, separators=(",", ":"))
    connection.send_bytes(text.encode("utf-8", "backslashreplace"))


async def _main(connection: Connection) -> None:
    opening = json.loads(connection.recv_bytes())
    sys.path[:] = opening["path"]
    told = opening["options"]
    lists = {name: tuple(told[name]) for name in ("urls", "extra_args")}
    options = EngineOptions(**{**told, **lists})
    try:
        engine = await open_engine(options)
    except Exception as error:
        send(connection, {"error": describe(error)})
        return
    try:
        worker = Worker(connection, engine, options)
        gc.collect()
        gc.freeze()  # what is loaded stays: the collector need not look at it again
        send(connection, {"ready": True})
        await worker.serve()
    finally:
        await engine.aclose()


if __name__ == "__main__":
    with Connection(int(sys.argv[1])) as opened:
        asyncio.run(_main(opened))
