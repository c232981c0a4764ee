"""`palestra eval --endpoint` as a user meets it, against a real server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from palestra.endpoint.scripted import Scripted, ScriptedServer

COMMAND = str(Path(sys.executable).parent / "palestra")


def evaluate(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")}
    return subprocess.run(
        [COMMAND, "eval", "Arithmetic-v0", "--model", "m", *arguments],
        env={**env, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a user's mistake is answered with."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("palestra: ")


def test_an_endpoint_is_evaluated_with_its_tokens_and_cost() -> None:
    with ScriptedServer(lambda body: "I do not know") as server:
        arguments = ("--endpoint", server.base_url, "--n", "5", "--api-key-env", "MY_KEY")
        done = evaluate(*arguments, "--price", "1000", "2000", "--json", MY_KEY="a-key")
        assert done.returncode == 0, done.stderr
        table = evaluate(*arguments, MY_KEY="a-key").stdout
    figures = json.loads(done.stdout)
    assert (figures["n"], figures["mean"]) == (5, 0.0)
    assert figures["endpoint_usage"]["prompt_tokens"] == 500
    assert figures["usage"]["completion_tokens"] == 50
    assert figures["usage"]["cost"] == pytest.approx(0.6)
    assert "5 requests (0 of them retries) and counted 500 prompt and 50 completion" in table
    assert "cost" not in table
    assert server.headers[0]["authorization"] == "Bearer a-key"
    assert server.requests[0]["model"] == "m"
    assert server.requests[0]["tools"][0]["function"]["name"] == "calculator"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "nonsense"])
def test_a_url_that_is_none_is_told(url: str) -> None:
    done = evaluate("--endpoint", url, OPENAI_API_KEY="k")
    assert error_of(done).startswith("--endpoint must be a URL such as http://localhost:8000/v1")


def test_a_missing_key_is_told_with_the_variable_to_set() -> None:
    url = "http://127.0.0.1:1/v1"
    assert "set OPENAI_API_KEY (to any word" in error_of(evaluate("--endpoint", url))
    done = evaluate("--endpoint", url, "--api-key-env", "MY_KEY", OPENAI_API_KEY="k")
    assert "set MY_KEY" in error_of(done)


def test_a_wrong_key_is_one_line_and_not_asked_for_every_task() -> None:
    refused = Scripted(status=401, error={"message": "no such key: wrong-key-1234"})
    with ScriptedServer(lambda body: refused) as server:
        arguments = ("--endpoint", server.base_url, "--max-concurrent", "4")
        done = evaluate(*arguments, OPENAI_API_KEY="wrong-key-1234")
    assert error_of(done).endswith("check the key")
    assert "wrong-key-1234" not in done.stderr
    assert len(server.requests) <= 4


def test_help_says_how() -> None:
    done = subprocess.run([COMMAND, "eval", "--help"], capture_output=True, text=True, timeout=60)
    for words in ("--endpoint URL", "--api-key-env NAME", "--price PROMPT COMPLETION"):
        assert words in done.stdout
