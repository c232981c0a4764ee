"""`palestra envs list` and `palestra envs show`: what is registered, and what it asks."""

from __future__ import annotations

import inspect
import json
from typing import Any

from palestra.envs import registry
from palestra.types import Message


def list_envs(*, as_json: bool) -> int:
    """Print every registered id with the first sentence of its environment's docstring."""
    rows = [{"id": id, "description": _describe(id)} for id in registry.list_ids()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    width = max((len(row["id"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['id']:<{width}}  {row['description']}")
    return 0


def show_env(id: str) -> int:
    """Print an environment's tools and splits, and one task as the policy sees it."""
    env = registry.make(id)
    _, info = env.reset(seed=0)
    task = info["task"]
    print(f"{registry.spec(id).id}: {_describe(id)}")
    print("\ntools:")
    for schema in info["tools"]:
        function = schema["function"]
        arguments = ", ".join(
            f"{name}: {_type_of(property)}"
            for name, property in function["parameters"].get("properties", {}).items()
        )
        print(f"  {function['name']}({arguments})  {_first_line(function.get('description', ''))}")
    if not info["tools"]:
        print("  none")
    for split in ("train", "test"):
        try:
            tasks = getattr(registry.make(id, split=split), "tasks", None)
        except (TypeError, ValueError):  # an environment need not have splits
            continue
        if tasks is not None:
            print(f"\n{split}: {len(tasks)} tasks", end="")
    print(f"\n\none task ({task.id}):")
    for message in task.messages:
        print(f"  {message['role']}: {_text_of(message)}")
    if task.answer is not None:
        print(f"  answer: {task.answer}")
    env.close()
    return 0


def _describe(id: str) -> str:
    """The first line of the entry point's docstring; a broken package is named, not raised."""
    from gymnasium.envs.registration import load_env_creator

    entry_point: Any = registry.spec(id).entry_point
    try:
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    except Exception as error:
        return f"cannot be loaded: {type(error).__name__}: {error}"
    return _first_line(inspect.getdoc(creator) or "")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _type_of(property: dict[str, Any]) -> str:
    if "enum" in property:
        return " | ".join(json.dumps(value) for value in property["enum"])
    if "anyOf" in property:
        return " | ".join(_type_of(option) for option in property["anyOf"])
    return str(property.get("type", "any"))


def _text_of(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
