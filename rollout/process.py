"""`RolloutProcess`: environments and a served engine in a process of their own, beside a trainer.

Only environment ids, JSON arguments, episodes and the names of weight folders cross the border.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from palestra.rollout.engine import Probe, StaleWeights
from palestra.rollout.engine_options import EngineOptions
from palestra.rollout.process_worker import send
from palestra.rollout.request import RolloutRequest
from palestra.types import Episode

_log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 30.0
_MAX_DEATHS = 3
_RAISED = {kind.__name__: kind for kind in (ValueError, OSError, StaleWeights)}

# A request's answers: frames of the worker, None when it has died.
_Answers = asyncio.Queue[dict[str, Any] | None]


class RolloutDied(RuntimeError):
    """The rollout process died more often than it is started again."""


class RolloutProcess:
    """Plays episodes with weights that are sent to it.

    When the process dies, an engine that it started dies with it; both are started again, get the
    weights that they had last, and episodes that were not handed over are played again.

    Args:
        options: the engine; `options.log_folder` also gets the process's own output.

    Raises:
        ValueError: the engine cannot be started or attached to, with its reason.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[asyncio.AbstractEventLoop, _Answers]] = {}
        self._reviving = threading.Lock()
        self._deaths = 0
        self._loaded: dict[str, Any] | None = None  # what a process that is started again loads
        self._start()

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._child.pid

    async def play(self, request: RolloutRequest) -> AsyncGenerator[Episode, None]:
        """The request's episodes as they end; leaving early cancels what is in progress.

        Raises:
            ValueError: the request is wrong.
            OSError: `record_to` cannot be written.
            RolloutDied: the process cannot be kept alive.
        """
        text = request.to_json()
        seen: set[str] = set()
        while True:
            child = self._child
            number, answers = self._ask({"op": "play", "request": text})
            try:
                while (frame := await answers.get()) is not None:
                    if "episode" not in frame:
                        _raise_error(frame)
                        return
                    episode = Episode.from_json(frame["episode"])
                    if episode.id not in seen:
                        seen.add(episode.id)
                        yield episode
            finally:
                self._forget(number)
            await self._revive(child)

    async def update_weights(
        self, version: int, folder: str | Path, probe: Probe | None = None
    ) -> None:
        """Have every server load the weights in `folder`, and check that it serves them.

        Keep the folder until the next update is done: a server that is started again needs it.

        Raises:
            StaleWeights: a server serves something else.
            ValueError: the folder does not fit.
        """
        update = {
            "op": "update",
            "version": version,
            "folder": str(folder),
            "probe": None if probe is None else asdict(probe),
        }
        before, self._loaded = self._loaded, update  # for a process that is started meanwhile
        try:
            while True:
                child = self._child
                if await self._update(update):
                    return
                await self._revive(child)
        except BaseException:
            self._loaded = before
            raise

    def close(self) -> None:
        """End the process and the engine that it started. May be called more than once."""
        if self._connection.closed:
            return
        with contextlib.suppress(OSError):
            send(self._connection, {"op": "close", "number": next(self._numbers)})
        try:
            self._child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _log.warning("the rollout process did not end in %g s: killed", _STOP_TIMEOUT_S)
            self._child.kill()
            self._child.wait()
        self._reader.join()
        self._connection.close()

    def _start(self) -> None:
        """Start a process that has the weights of the last update, then use it.

        Raises ValueError, or what loading the weights raised.
        """
        ours, theirs = Pipe()
        output: Any = None
        if self._options.log_folder is not None:
            Path(self._options.log_folder).mkdir(parents=True, exist_ok=True)
            output = open(Path(self._options.log_folder) / "rollout.log", "ab")  # noqa: SIM115
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "palestra.rollout.process_worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the trainer, which closes us in order
            )
        if output is not None:
            output.close()
        try:
            send(ours, {"options": asdict(self._options), "path": sys.path})
            opened = json.loads(ours.recv_bytes())
            if "error" in opened:
                raise ValueError(opened["error"][1])
            if self._loaded is not None:
                # Should it die of them, whoever asks it next finds out.
                with contextlib.suppress(EOFError, ConnectionError):
                    send(ours, {**self._loaded, "number": next(self._numbers)})
                    _raise_error(json.loads(ours.recv_bytes()))
        except BaseException as error:
            ours.close()  # it ends by that
            child.wait()
            if isinstance(error, EOFError):
                raise ValueError(f"the rollout process did not start{self._hint()}") from None
            raise
        self._connection = ours
        self._reader = threading.Thread(
            target=self._read, args=(ours,), name="rollout process", daemon=True
        )
        self._reader.start()
        # The last: who asked the process before it must not take this one for dead.
        self._child = child

    def _read(self, connection: Connection) -> None:
        """Hand the worker's frames to those who wait for them."""
        try:
            while True:
                frame = json.loads(connection.recv_bytes())
                if (waiting := self._waiting.get(frame["number"])) is not None:
                    _put(*waiting, frame)
        except (EOFError, OSError):
            for waiting in list(self._waiting.values()):
                _put(*waiting, None)

    def _ask(self, frame: dict[str, Any]) -> tuple[int, _Answers]:
        number = next(self._numbers)
        answers: _Answers = asyncio.Queue()
        self._waiting[number] = (asyncio.get_running_loop(), answers)
        try:
            send(self._connection, {**frame, "number": number})
        except OSError:
            answers.put_nowait(None)
        return number, answers

    def _forget(self, number: int) -> None:
        del self._waiting[number]
        with contextlib.suppress(OSError):  # dead or closed: nothing is left to cancel
            send(self._connection, {"op": "cancel", "number": number})

    async def _update(self, update: dict[str, Any]) -> bool:
        """Whether it was done; False when the process died."""
        number, answers = self._ask(update)
        try:
            frame = await answers.get()
        finally:
            self._forget(number)
        if frame is None:
            return False
        _raise_error(frame)
        return True

    async def _revive(self, dead: subprocess.Popen[bytes]) -> None:
        """Start the process again, unless somebody else has done so."""
        await asyncio.get_running_loop().run_in_executor(None, self._restart, dead)

    def _restart(self, dead: subprocess.Popen[bytes]) -> None:
        with self._reviving:
            if self._child is dead:
                self._bury()
                self._start()

    def _bury(self) -> None:
        self._child.kill()
        status = self._child.wait()
        self._reader.join()
        self._connection.close()
        self._deaths += 1
        if self._deaths > _MAX_DEATHS:
            raise RolloutDied(
                f"the rollout process died {self._deaths} times, last with status {status}"
                f"{self._hint()}"
            )
        _log.warning("the rollout process died (status %s) and is started again", status)

    def _hint(self) -> str:
        folder = self._options.log_folder
        return "" if folder is None else f"; see {os.path.join(folder, 'rollout.log')}"


def _put(loop: asyncio.AbstractEventLoop, answers: _Answers, frame: dict[str, Any] | None) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
        loop.call_soon_threadsafe(answers.put_nowait, frame)


def _raise_error(frame: dict[str, Any]) -> None:
    if "error" in frame:
        kind, message = frame["error"]
        raise _RAISED.get(kind, RuntimeError)(message)
