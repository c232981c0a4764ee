"""What the tests of the verifiers share: a verdict on one reply, sandboxes, hostile text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from palestra.tools import Sandbox, SandboxSpec, State
from palestra.tools.sandboxes.choose import backend_class
from palestra.types import Message, Score, Task
from palestra.verifiers import run_verifier

Judge = Callable[..., Score]


@pytest.fixture
def judge() -> Judge:
    """`judge(verifier, reply, answer)`: the verdict, as environments ask for it."""

    def run(
        verifier: Callable[..., Any],
        reply: str = "",
        answer: Any = None,
        *,
        messages: Sequence[Message] | None = None,
        state: State | None = None,
        sandbox: Sandbox | None = None,
        fresh_sandbox: Callable[[], Sandbox] | None = None,
        timeout_s: float = 30.0,
        **info: Any,
    ) -> Score:
        prompt: Message = {"role": "user", "content": "?"}
        task = Task(id="t", messages=(prompt,), answer=answer, info=info)
        return asyncio.run(
            run_verifier(
                verifier,
                task=task,
                messages=messages or [prompt, {"role": "assistant", "content": reply}],
                reply=reply,
                state=state,
                sandbox=sandbox,
                fresh_sandbox=fresh_sandbox,
                timeout_s=timeout_s,
            )
        )

    return run


@pytest.fixture
def new_sandbox() -> Iterator[Callable[[], Sandbox]]:
    """Starts sandboxes without protection, which are killed after the test."""
    spec = SandboxSpec(backend="unsafe", packages=())
    started: list[Sandbox] = []

    def start() -> Sandbox:
        sandbox = backend_class("unsafe")(spec)
        sandbox.sync.start()
        started.append(sandbox)
        return sandbox

    yield start
    for sandbox in started:
        sandbox.sync.kill()


@pytest.fixture
def calling() -> Callable[..., list[Message]]:
    """`calling(("add", {"a": 1}), …)`: a conversation of one reply that makes these calls."""

    def conversation(*calls: tuple[str, Any], error: str | None = None) -> list[Message]:
        entries = [
            {
                "id": f"call_{i}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": given if isinstance(given, str) else json.dumps(given),
                },
                **({} if error is None else {"error": error}),
            }
            for i, (name, given) in enumerate(calls)
        ]
        return [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": entries},
            {"role": "assistant", "content": "done"},
        ]

    return conversation
