"""`palestra serve --engine vllm`: its engine is killed under load, and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from palestra.rollout import ChatFormat
from palestra.tools import calculator
from palestra.trainer.load import save_policy
from palestra.trainer.tiny import build_policy

pytestmark = pytest.mark.slow

COMMAND = str(Path(sys.executable).parent / "palestra")
OPTIONS = ["--engine=vllm", "--port=0", "--context-length=512", "--max-batch=16", "--dtype=float32"]
BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "1"}],
    "max_tokens": 400,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 5000}},
    },
}
HELLO = {**BODY, "max_tokens": 4, "response_format": {"type": "text"}}


@contextmanager
def served(folder: Path, python: Path) -> Iterator[tuple[Any, str]]:
    process = subprocess.Popen(
        [COMMAND, "serve", str(folder), *OPTIONS, "--engine-python", str(python)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "it did not start"
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def descendants(pid: int) -> list[int]:
    """The processes below one, by /proc."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in children for one in (int(child), *descendants(int(child)))]


def engine_of(pid: int) -> list[int]:
    """The server of vLLM that a process runs, without the guard that starts and watches it."""
    below = [(one, Path(f"/proc/{one}/cmdline").read_bytes()) for one in descendants(pid)]
    return [
        one
        for one, command in below
        if b"vllm.entrypoints" in command and b"server_guard" not in command
    ]


def test_clients_of_an_engine_that_is_killed_are_told_and_it_comes_back(
    engine_python: Callable[[str], Path], tmp_path: Path
) -> None:
    python = engine_python("vllm")
    conversation = [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "3"}]
    model, tokenizer = build_policy([(conversation, [calculator.schema()])])
    folder = tmp_path / "tiny"
    save_policy(model, tokenizer, ChatFormat.from_tokenizer(tokenizer), folder)
    answers: list[tuple[int, str]] = []
    begun = threading.Barrier(9)
    with served(folder, python) as (process, url):

        def stream() -> None:
            with httpx.stream(
                "POST", f"{url}/chat/completions", json={**BODY, "stream": True}, timeout=200
            ) as answer:
                lines = answer.iter_lines()
                first = next(lines)
                begun.wait()
                answers.append((answer.status_code, "\n".join([first, *lines])))

        def ask() -> None:
            begun.wait()
            answer = httpx.post(f"{url}/chat/completions", json=HELLO, timeout=200)
            answers.append((answer.status_code, answer.text))

        clients = [threading.Thread(target=stream) for _ in range(4)]
        clients += [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        begun.wait()
        (engine, *_) = engine_of(process.pid)
        os.kill(engine, signal.SIGKILL)
        for client in clients:
            client.join()
        assert len(answers) == 8
        for status, text in answers:
            if text.startswith("data: "):
                *_, last = [line for line in text.splitlines() if line]
                if last != "data: [DONE]":
                    error = json.loads(last.removeprefix("data: "))["error"]
                    assert (error["type"], error["code"]) == ("server_error", "unavailable")
            elif status != 200:
                assert status == 503, text
                assert json.loads(text)["error"]["type"] == "server_error"
        assert any('"code":"unavailable"' in text for _, text in answers)

        def wait_for_health(status: int) -> None:
            until = time.monotonic() + 200
            while httpx.get(url.replace("/v1", "/health")).status_code != status:
                assert time.monotonic() < until
                time.sleep(0.1)

        wait_for_health(200)
        answer = httpx.post(f"{url}/chat/completions", json=HELLO, timeout=200)
        assert answer.status_code == 200, answer.text
        (again, *_) = engine_of(process.pid)
        assert again != engine

        # Nobody asks anything when it dies now.
        os.kill(again, signal.SIGKILL)
        wait_for_health(503)
        wait_for_health(200)
        (again, *_) = engine_of(process.pid)

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not Path(f"/proc/{again}").exists()
