"""A policy that knows nothing: the floor that a task must not reward."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

from palestra.types import Message, Sampling, Task, ToolSchema, Turn


class RandomPolicy:
    """Calls random tools with random arguments that fit their schemas, then answers at random.

    Answers are words of the conversation or small numbers. The same `sampling.seed` gives the same
    reply.
    """

    def __init__(self, *, call_probability: float = 0.5) -> None:
        if not 0 <= call_probability <= 1:
            raise ValueError(f"call_probability must be between 0 and 1, got {call_probability}")
        self._call_probability = call_probability

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        """A call or an answer."""
        rng = random.Random(sampling.seed)
        words = _words(messages)
        if not tools or rng.random() >= self._call_probability:
            answer = rng.choice([*words, str(rng.randint(-100, 100))])
            return Turn(message={"role": "assistant", "content": answer}, sampling=sampling)
        function = rng.choice(list(tools))["function"]
        arguments = _draw(function.get("parameters") or {"type": "object"}, rng, words)
        call = {
            "id": "call_0",
            "type": "function",
            "function": {"name": function["name"], "arguments": json.dumps(arguments)},
        }
        message = {"role": "assistant", "content": "", "tool_calls": [call]}
        return Turn(message=message, sampling=sampling)


def _words(messages: Sequence[Message]) -> list[str]:
    texts = [message.get("content") for message in messages]
    return [word for text in texts if isinstance(text, str) for word in re.findall(r"\w+", text)]


def _draw(schema: dict[str, Any], rng: random.Random, words: list[str]) -> Any:
    """A value that fits the JSON Schema, as far as types, choices and bounds say."""
    if "const" in schema:
        return schema["const"]
    if choices := schema.get("enum"):
        return rng.choice(choices)
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return _draw(rng.choice(branches), rng, words)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = rng.choice(kind)
    if kind == "object":
        required = schema.get("required", ())
        return {
            name: _draw(property_schema, rng, words)
            for name, property_schema in schema.get("properties", {}).items()
            if name in required or rng.random() < 0.5
        }
    if kind == "array":
        count = rng.randint(schema.get("minItems", 0), schema.get("maxItems", 3))
        return [_draw(schema.get("items", {}), rng, words) for _ in range(count)]
    if kind in ("integer", "number"):
        low, high = int(schema.get("minimum", -100)), int(schema.get("maximum", 100))
        number = rng.randint(min(low, high), max(low, high))
        return number if kind == "integer" else number + round(rng.random(), 2)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "null":
        return None
    return rng.choice(words or ["word"])
