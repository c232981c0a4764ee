"""`palestra serve --engine sglang` on the real server: what reaches a client through all of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.slow

COMMAND = str(Path(sys.executable).parent / "palestra")
OPTIONS = ["--engine=sglang", "--port=0", "--context-length=256", "--max-batch=8"]
# Else a model that knows no JSON may write white space until it is cut.
OPTIONS += ["--engine-arg=--constrained-json-disable-any-whitespace"]
ASKED: Any = {"model": "tiny", "messages": [{"role": "user", "content": "1 + 2"}]}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(model_folder: Path, engine_python: Callable[[str], Path]) -> Iterator[openai.OpenAI]:
    """A client of the served model; SIGTERM ends the server and what it started."""
    python = engine_python("sglang")
    with subprocess.Popen(
        [COMMAND, "serve", str(model_folder), *OPTIONS, "--engine-python", str(python)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "it did not start"
            url = line.split()[-1]
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as opened:
                yield opened
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_a_reply_has_its_tokens_and_their_log_probabilities(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ASKED, max_tokens=8, logprobs=True, top_logprobs=2)
    [choice] = reply.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    told = choice.logprobs.content
    assert reply.usage is not None and 1 <= reply.usage.completion_tokens <= 8
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in told)
    # At temperature 1 nothing is likelier than the likeliest.
    assert all(token.logprob <= token.top_logprobs[0].logprob + 1e-6 for token in told)


def test_a_greedy_reply_is_the_same_streamed_or_not(client: openai.OpenAI) -> None:
    asked = {**ASKED, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces = client.chat.completions.create(**asked, stream=True)
    streamed = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert whole and streamed == whole


def test_a_call_that_is_required_is_made(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        **ASKED, tools=[TOOL], tool_choice="required", max_tokens=60
    )
    [choice] = reply.choices
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    [call] = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "add"
    assert json.loads(call.function.arguments)["a"] in (1, 2)


def test_with_a_schema_a_reply_is_of_it_or_a_call(client: openai.OpenAI) -> None:
    replies = client.chat.completions.create(
        **ASKED,
        tools=[TOOL],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}},
        },
        max_tokens=100,
        n=8,
    )
    # White space of calls is free all the same: some may be cut.
    ended = [choice for choice in replies.choices if choice.finish_reason != "length"]
    assert ended
    for choice in ended:
        if choice.message.tool_calls:
            assert choice.message.tool_calls[0].type == "function"
        else:
            assert json.loads(choice.message.content or "") in ("yes", "no")
