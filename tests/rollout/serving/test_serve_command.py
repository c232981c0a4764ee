"""`palestra serve` as a user meets it: a real process, from its first line to its exit status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

COMMAND = str(Path(sys.executable).parent / "palestra")


@contextmanager
def served(*arguments: str | Path, **variables: str) -> Iterator[tuple[Any, str]]:
    """The process and what it says that it serves at."""
    process = subprocess.Popen(
        [COMMAND, "serve", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        yield process, line
    finally:
        process.kill()
        process.communicate()


def refusal(*arguments: str | Path, **variables: str) -> str:
    """The one line that a user's mistake is answered with."""
    done = subprocess.run(
        [COMMAND, "serve", *map(str, arguments)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = done.stderr.splitlines()
    return line.removeprefix("palestra: ")


def test_a_model_is_served_until_it_is_told_to_end(model_folder: Path) -> None:
    with served(model_folder, "--port", "0", "--context-length", "128") as (process, line):
        assert line.startswith("serving tiny at http://127.0.0.1:")
        url = line.split()[-1]
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        with client:
            answer = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "1"}], max_tokens=5
            )
            assert answer.usage is not None
            assert client.models.retrieve("tiny").model_extra == {"max_model_len": 128}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_sigterm_lets_streams_end_and_refuses_what_comes_after(model_folder: Path) -> None:
    with served(model_folder, "--port", "0", "--drain-timeout", "120") as (process, line):
        url = line.split()[-1]
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "1"}],
            "max_tokens": 600,
            "n": 4,
            "stream": True,
            "response_format": LONG,
        }
        with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=120) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            while (health := httpx.get(url.replace("/v1", "/health"))).status_code == 200:
                time.sleep(0.01)
            refused = httpx.post(f"{url}/chat/completions", json=body)
            events = [one for one in lines if one]
        assert health.status_code == 503
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert int(refused.headers["retry-after"]) >= 1
        assert events[-1] == "data: [DONE]"
        assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["timeout", "second signal"])
def test_what_does_not_end_in_time_is_told_so(model_folder: Path, how: str) -> None:
    timeout = "0.1" if how == "timeout" else "3600"
    with served(model_folder, "--port", "0", "--drain-timeout", timeout) as (process, line):
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "1"}],
            "stream": True,
            "n": 16,
            "response_format": LONG,
        }
        with httpx.stream(
            "POST", f"{line.split()[-1]}/chat/completions", json=body, timeout=120
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            if how == "second signal":
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
            events = [one for one in lines if one]
        assert '"code":"shutting_down"' in events[-1]
        assert process.wait(20) == 0


# A reply that does not end before its limit.
LONG: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 5000}},
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "there is no model folder nowhere"),
        (["MODEL", "--engine", "tgi"], "unknown engine 'tgi'"),
        (["MODEL", "--port", "65536"], "--port: must be a port from 0 to 65535"),
        (["MODEL", "--host", "0.0.0.0"], "whoever reaches 0.0.0.0 can use the model"),
        (["MODEL", "--api-key-env", "NO_SUCH_KEY"], "the variable NO_SUCH_KEY is not set"),
        (["MODEL", "--api-keys-file", "/absent"], "/absent: no such file"),
        (["MODEL", "--engine-url", "http://h"], "--engine-url is for servers"),
        (["MODEL", "--engine-arg=--x"], "--engine-arg is for servers"),
        (["MODEL", "--port", "0", "--context-length", "9999"], "more than the model's 1024"),
        (["MODEL", "--port", "0", "--device", "tpu"], 'device "tpu" cannot be used'),
    ],
)
def test_mistakes_are_answered_in_one_line(
    model_folder: Path, arguments: list[str], expected: str
) -> None:
    given = [str(model_folder) if one == "MODEL" else one for one in arguments]
    assert expected in refusal(*given)


def test_a_port_in_use_is_told_before_a_model_is_loaded(model_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        error = refusal(model_folder, "--port", port)
    assert f"port {port} of 127.0.0.1 is in use: choose another with --port" in error


def test_keys_limits_and_names_are_as_the_command_line_says(model_folder: Path) -> None:
    with served(
        model_folder,
        *("--port", "0", "--host", "0.0.0.0", "--api-key-env", "KEY", "--rate-limit", "3"),
        *("--max-body-mb", "0.001", "--served-model-name", "a", "--served-model-name", "b"),
        KEY="a-secret-key",
    ) as (_, line):
        assert line.startswith("serving a, b at http://0.0.0.0:")
        url = line.split()[-1].replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/models").status_code == 401
        headers = {"authorization": "Bearer a-secret-key"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            assert [model["id"] for model in client.get("models").json()["data"]] == ["a", "b"]
            body = {"model": "b", "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
            asked = [client.post("chat/completions", json=body).status_code for _ in range(2)]
            body["messages"] = [{"role": "user", "content": "1" * 2000}]
            asked += [client.post("chat/completions", json=body).status_code for _ in range(2)]
    assert asked == [200, 200, 413, 429]


def test_curl_gets_a_stream(model_folder: Path) -> None:
    with served(model_folder, "--port", "0") as (_, line):
        body = '{"model": "tiny", "messages": [{"role": "user", "content": "1"}], "stream": true}'
        header = "Content-Type: application/json"
        done = subprocess.run(
            ["curl", "-sSN", f"{line.split()[-1]}/chat/completions", "-H", header, "-d", body],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("data: [DONE]\n\n")
