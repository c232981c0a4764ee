"""The ten-line environment: a task, a tool and a verifier, registered under palestra/Add-v0."""

from palestra import ToolEnv, register, tool, verifiers


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


register(
    "Add-v0",
    ToolEnv,
    tasks=[{"prompt": "What is 17+25?", "answer": "42"}],
    tools=[add],
    verifier=verifiers.number,
)
