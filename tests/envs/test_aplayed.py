"""An environment takes over a conversation that somebody else had, and judges it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from palestra.envs import Env, ToolEnv, guarded_score
from palestra.types import Failure, Message, Outcome

PLAYED: list[Message] = [
    {"role": "system", "content": "You are another agent."},
    {"role": "user", "content": "6 x 7?"},
    {"role": "assistant", "content": "It is 41."},
]


def judge(answer: str | None) -> tuple[dict[str, Any], list[tuple[str, list[Message]]]]:
    seen: list[tuple[str, list[Message]]] = []

    def verifier(reply: str, messages: list[Message], answer: str) -> bool:
        seen.append((reply, list(messages)))
        return answer in reply

    async def play() -> dict[str, Any]:
        env = ToolEnv(tasks=[{"prompt": "6 x 7?", "answer": "42"}], verifier=verifier)
        await env.areset(options={"task": 0})
        await env.aplayed(PLAYED, answer)
        *_, info = await guarded_score(env, "answer")
        return info

    return asyncio.run(play()), seen


@pytest.mark.parametrize(
    ("answer", "reply", "value"), [(None, "It is 41.", 0.0), ("42", "42", 1.0), ("", "", 0.0)]
)
def test_the_verifier_judges_the_answer_or_else_the_last_reply(
    answer: str | None, reply: str, value: float
) -> None:
    info, seen = judge(answer)
    assert (info["outcome"], info["score"].value) == (Outcome.SCORED, value)
    assert seen == [(reply, PLAYED)]


def test_what_the_environment_took_over_is_its_own_copy() -> None:
    env = ToolEnv(tasks=[{"prompt": "6 x 7?", "answer": "42"}], verifier=lambda reply: True)
    asyncio.run(env.aplayed(PLAYED, None))
    assert env.messages == PLAYED
    assert env.messages[0] is not PLAYED[0]


def test_an_environment_that_judges_no_conversations_says_so() -> None:
    with pytest.raises(Failure, match="it must define aplayed"):
        asyncio.run(Env().aplayed(PLAYED, None))
