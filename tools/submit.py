"""`submit` and `finish`: how a policy says that it is done."""

from __future__ import annotations

from palestra.tools.tool import tool


@tool(ends_episode=True)
async def submit(answer: str) -> str:
    """Submit the final answer. This ends the task: only the answer submitted counts."""
    return answer


@tool(ends_episode=True)
async def finish() -> None:
    """Say that the task is done. This ends it."""
