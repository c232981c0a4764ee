"""What the agent is trained on: tasks, how it is run for one, and a teacher that solves them."""

import functools
import logging
import re
import ssl
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import agents
from agent import answer
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from palestra import ToolEnv, register, verifiers
from palestra.envs.arithmetic import expressions
from palestra.envs.tasks import TaskSet
from palestra.rollout import tool_call
from palestra.rollout.engine import Piece
from palestra.rollout.serving.agents import AgentTask
from palestra.types import Completion, Sampling, Task

ENV_ID = "example/Problems-v0"
TOOLS = {"+": "add", "*": "multiply"}

agents.set_tracing_disabled(True)
# A reply that it cannot use is no news during training.
logging.getLogger("openai.agents").setLevel(logging.CRITICAL)

# Loading the certificates takes longer than an episode.
_TLS = ssl.create_default_context()


@functools.cache
def problems(split: str) -> TaskSet:
    """Sums and products of three or four numbers; splits share no expression."""

    def rows(split: str, seed: int) -> Iterator[dict[str, Any]]:
        return (row for row in expressions(split, seed) if "-" not in row["prompt"])

    return TaskSet.load(rows, split=split, limit=4000 if split == "train" else 1000)


class Problems(ToolEnv):
    """Asks for the value of an expression. The agent brings its own tools."""

    def __init__(self, split: str = "train") -> None:
        super().__init__(tasks=problems(split), verifier=verifiers.number)


register(ENV_ID, Problems)


async def play(task: AgentTask) -> str:
    """Run the agent, unchanged, against the episode's base URL."""
    async with AsyncOpenAI(
        base_url=task.base_url,
        api_key=task.api_key,
        http_client=DefaultAsyncHttpxClient(verify=_TLS),
    ) as client:
        return await answer(task.prompt, client)


class Teacher:
    """An engine that knows the steps of each task, to have the agent show how it is done."""

    context_length = 1024
    version = 0

    def __init__(self, tokenizer: Any, tasks: Sequence[Task]) -> None:
        self._tokenizer = tokenizer
        self._tasks = {task.messages[-1]["content"]: task for task in tasks}

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """The next step of the task in the prompt."""
        prompt = self._tokenizer.decode(prompt_ids)
        (question,) = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", prompt)
        text = self._reply(self._tasks[question], prompt.count("<|im_start|>tool\n"))
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = (*ids, self._tokenizer.eos_token_id)
        return Completion(ids=ids, logprobs=(0.0,) * len(ids), stop_reason="stop")

    def _reply(self, task: Task, done: int) -> str:
        steps = task.info["steps"]
        if done == len(steps):
            return str(task.answer)
        a, operator, b, _ = steps[done]
        return tool_call(TOOLS[operator], a=a, b=b)

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """The same in one piece."""
        whole = await self.generate(prompt_ids, sampling)
        yield Piece(ids=whole.ids, logprobs=whole.logprobs, stop_reason="stop")

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """It has no probabilities."""
        raise NotImplementedError

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None:
        """It learns nothing."""

    async def aclose(self) -> None:
        """It holds nothing."""
