"""An agent as people write it with openai-agents: it knows nothing of palestra.

OPENAI_BASE_URL=… OPENAI_API_KEY=… python agent.py "(3 + 4) * 5"
"""

import asyncio
import sys

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool
from openai import AsyncOpenAI

INSTRUCTIONS = "Compute with the tools."


@function_tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@function_tool
async def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


async def answer(question: str, client: AsyncOpenAI) -> str:
    """Work on a question, a call of a tool at a time."""
    calculator = Agent(
        name="calculator",
        instructions=INSTRUCTIONS,
        tools=[add, multiply],
        model=OpenAIChatCompletionsModel(model="calculator", openai_client=client),
    )
    result = await Runner.run(calculator, question, max_turns=6)
    return str(result.final_output)


if __name__ == "__main__":
    print(asyncio.run(answer(sys.argv[1], AsyncOpenAI())))
