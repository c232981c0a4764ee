"""State checks: did a file, a table or the tools' state reach the goal?"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from palestra.tools.sandboxes.sandbox import Sandbox
from palestra.tools.state import State
from palestra.tools.threads import run_in_thread
from palestra.tools.trouble import OutOfResources, TimedOut
from palestra.types import Failure, Message, Score, ToolError, Unscorable
from palestra.verifiers.context import Context
from palestra.verifiers.exact import exact
from palestra.verifiers.isolated import QUEUE_TIMEOUT_S
from palestra.verifiers.json_answer import same_json
from palestra.verifiers.parts import Parts, named
from palestra.verifiers.sql_result import difference
from palestra.verifiers.sql_rows import Rows, query_rows
from palestra.verifiers.verifier import Declaration, Verifier, verifier

_MAX_ROWS = 10_000

T = TypeVar("T")


def acted(messages: Sequence[Message]) -> Score:
    """1 if the episode made at least one tool call that could be read.

    The gate of every check here: `sequence(acted, goal)`. A state that was right before the episode
    began must not pay an empty reply.
    """
    if _acted(messages):
        return Score(value=1.0)
    return Score(value=0.0, explanation="no tool was called")


def on_file(path: str, verifier: Verifier = exact) -> OnFile:
    """A verifier's verdict on a file of the sandbox, which it gets as the reply.

        on_file("report.json", json_schema(schema))

    A file that is missing, too large, no regular file or not UTF-8 is wrong; so is an episode
    without a tool call, and one that brought its sandbox down.

    Raises:
        ValueError: something that is no verifier.
    """
    return OnFile(path, verifier)


class OnFile(Parts):
    """What `on_file` makes."""

    def __init__(self, path: str, verifier: Verifier) -> None:
        part = named(verifier)
        super().__init__([part], Declaration(name=f"on_file_{part.name}", range=part.range))
        self.path = path
        parameters = self.__signature__.parameters
        if "sandbox" not in parameters:
            asked = inspect.Parameter("sandbox", inspect.Parameter.KEYWORD_ONLY)
            self.__signature__ = inspect.Signature([*parameters.values(), asked])

    async def judge(self, context: Context) -> Score:
        (part,) = self.parts
        if not _acted(context.messages):
            return self._wrong("no tool was called")
        try:
            content = await _read(context.sandbox, self.path, context.timeout_s)
            text = content.decode()
        except (OSError, TimedOut, OutOfResources) as error:
            return self._wrong(f"{self.path}: {error}")
        except UnicodeDecodeError:
            return self._wrong(f"{self.path} is not UTF-8")
        return await self.judge_part(part, replace(context, reply=text))

    def _wrong(self, why: str) -> Score:
        low, _ = self.parts[0].range
        return Score(value=0.0, reward=low, explanation=why[:300])


def table_equals(
    path: str,
    query: str,
    *,
    ordered: bool = False,
    relative: float = 1e-6,
    timeout_s: float = 5.0,
) -> Verifier:
    """A verifier: 1 if a query on an SQLite file of the sandbox gives the rows of the reference.

    The reference is a list of rows. The policy made the file: it is copied out and queried in a
    process of its own, which only reads and is bounded in time and memory; whatever is wrong with
    it is the answer's fault. An episode without a tool call is wrong.
    """

    @verifier(name="table_equals", timeout_s=QUEUE_TIMEOUT_S)
    async def compare(sandbox: Sandbox, messages: Sequence[Message], answer: Any) -> Score:
        """1 if the rows are those. Raises Unscorable for a reference that is no list of rows."""
        expected = _rows(answer)
        if not _acted(messages):
            return Score(value=0.0, explanation="no tool was called")
        try:
            content = await _read(sandbox, path, timeout_s)
            found = await _query(content, query, timeout_s)
        except TimedOut:
            return Score(value=0.0, explanation=f"{path}: no result in {timeout_s:g} s")
        except (OSError, OutOfResources, ToolError) as error:
            return Score(value=0.0, explanation=f"{path}: {error}"[:300])
        if len(found.rows) == len(expected) == 0:
            return Score(value=1.0)
        wanted = Rows(columns=("",) * len(expected[0] if expected else ()), rows=expected)
        problem = difference(found, wanted, ordered=ordered, by_name=False, relative=relative)
        return Score(value=float(not problem), explanation=problem)

    return compare


def state_equals(state: State, messages: Sequence[Message], answer: Any) -> Score:
    """1 if the attributes of the tools' state that the reference names have the values it gives.

    The reference maps names to JSON values, compared by type and value (tuples as lists, True is
    not 1). What is no JSON, such as an object, equals nothing: write a verifier that asks for
    `state` and looks at it. An episode without a tool call is wrong.

    Raises:
        Unscorable: the reference maps no names, or to values that are no JSON.
    """
    if not isinstance(answer, Mapping) or not answer:
        raise Unscorable(f"state_equals needs a mapping as the task's answer, got {answer!r:.80}")
    try:
        expected = {str(name): _plain(value) for name, value in answer.items()}
    except TypeError as error:
        raise Unscorable(f"the task's answer is no JSON: {error}") from None
    if not _acted(messages):
        return Score(value=0.0, explanation="no tool was called")
    found = vars(state)
    wrong = [name for name, value in expected.items() if not _has(found, name, value)]
    return Score(
        value=float(not wrong),
        parts={name: float(name not in wrong) for name in expected},
        explanation=f"not as it should be: {', '.join(wrong)}"[:300] if wrong else "",
    )


def _acted(messages: Sequence[Message]) -> bool:
    return any(
        not call.get("error")
        for message in messages
        if message.get("role") == "assistant"
        for call in message.get("tool_calls") or ()
    )


async def _read(sandbox: Sandbox | None, path: str, timeout_s: float) -> bytes:
    """A file's content, no link followed. Raises OSError, TimedOut or OutOfResources."""
    if sandbox is None:
        raise Failure("verifier", f"there is no sandbox to read {path} from")
    return await _timed(sandbox.read(path, within="."), timeout_s)


async def _timed(work: Awaitable[T], timeout_s: float) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise TimedOut(f"not read in {timeout_s:g} s") from None


async def _query(content: bytes, query: str, timeout_s: float) -> Rows:
    with TemporaryDirectory(prefix="palestra-table-") as folder:
        file = Path(folder, "database")
        await run_in_thread(lambda: file.write_bytes(content))
        return await query_rows(
            file, query, max_rows=_MAX_ROWS, timeout_s=timeout_s, hostile_file=True
        )


def _rows(answer: Any) -> tuple[tuple[Any, ...], ...]:
    listed = answer if isinstance(answer, list | tuple) else None
    if listed is None or not all(isinstance(row, list | tuple) for row in listed):
        raise Unscorable(f"table_equals needs rows as the task's answer, got {answer!r:.80}")
    if len({len(row) for row in listed}) > 1:
        raise Unscorable(f"the rows of the task's answer are not equally long: {answer!r:.80}")
    return tuple(tuple(row) for row in listed)


def _has(found: Mapping[str, Any], name: str, expected: Any) -> bool:
    if name not in found:
        return False
    try:
        return same_json(_plain(found[name]), expected)
    except TypeError:
        return False


def _plain(value: Any) -> Any:
    """JSON values as they are, tuples as lists. Raises TypeError for what is no JSON."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [_plain(item) for item in value]
    if type(value) is dict and all(type(name) is str for name in value):
        return {name: _plain(item) for name, item in value.items()}
    raise TypeError(f"{type(value).__name__} is not JSON")
