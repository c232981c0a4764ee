"""From a row (a dictionary out of a list, file or data set) to a `Task`."""

from __future__ import annotations

from collections.abc import Mapping

from palestra.envs.spaces import ROLES, is_message
from palestra.types import Message, Task

_PROMPT_KEYS = ("prompt", "messages", "question")


def task_from_row(row: object, *, where: str, default_id: str) -> Task:
    """Read one row; keys other than the prompt, "answer" and "id" go to `Task.info`.

    The prompt is "prompt" or "question" (text, or a list of messages) or "messages".

    Raises:
        ValueError: not a row, or no usable prompt; the message begins with `where`.
    """
    if isinstance(row, Task):
        return row
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{where}: a task is a dictionary with a prompt, got {type(row).__name__} {row!r:.80}"
        )
    rest = dict(row)
    found = [key for key in _PROMPT_KEYS if rest.get(key) is not None]
    if not found:
        keys = ", ".join(map(str, row)) or "nothing"
        raise ValueError(
            f'{where}: no "prompt" (also accepted: "messages", "question"); the row has {keys}'
        )
    messages = _messages(rest.pop(found[0]), where=where, key=found[0])
    task_id = rest.pop("id", None)
    answer = rest.pop("answer", None)
    info = rest.pop("info", None)
    if isinstance(info, Mapping):
        rest |= info
    elif info is not None:
        rest["info"] = info
    return Task(
        id=default_id if task_id is None else str(task_id),
        messages=messages,
        answer=answer,
        info=rest,
    )


def _messages(prompt: object, *, where: str, key: str) -> tuple[Message, ...]:
    if isinstance(prompt, str) and prompt.strip():
        return ({"role": "user", "content": prompt},)
    if isinstance(prompt, (list, tuple)) and prompt:
        for message in prompt:
            if not is_message(message):
                raise ValueError(
                    f'{where}: "{key}" holds {message!r:.80}, which is no chat message: it takes '
                    f"a role ({', '.join(ROLES)}) and content"
                )
        return tuple(dict(message) for message in prompt)
    raise ValueError(
        f'{where}: "{key}" must be text or a list of chat messages, not empty; got {prompt!r:.80}'
    )
