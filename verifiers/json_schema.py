"""`json_schema`: the reply is JSON that a schema allows."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from palestra.tools.threads import run_in_thread
from palestra.tools.tool import Tool
from palestra.tools.trouble import OutOfResources, TimedOut
from palestra.types import Score, Unscorable
from palestra.verifiers.isolated import QUEUE_TIMEOUT_S, in_process
from palestra.verifiers.json_answer import NotJson, count_nodes, read_answer
from palestra.verifiers.verifier import verifier

# What may take more than linear time: with one of these, or a large document, a killable process
# looks at it.
_SLOW_KEYWORDS = {"pattern", "patternProperties", "$ref", "$dynamicRef", "$recursiveRef"}
_MAX_NODES_HERE = 1_000
_MEMORY_MB = 256


def json_schema(
    schema: dict[str, Any] | bool | None = None, *, timeout_s: float = 5.0
) -> Callable[..., Any]:
    """A verifier: 1 if the reply, or its last fenced block, is JSON that fits the schema.

    The schema is the task's answer if None (a dictionary or JSON text), in the dialect that it
    names, else 2020-12. `format` is not checked and no reference is fetched. A reply that takes
    longer than `timeout_s`, or too much memory, to validate is wrong. A schema says what shape an
    answer has, not whether it is true: empty objects and lists fit many of them.

    Raises:
        ValueError: a schema that is none.
    """
    if schema is not None:
        _check_schema(json.dumps(schema))
    in_worker = Tool(
        validate, name="json_schema", isolated=True, timeout_s=timeout_s, memory_mb=_MEMORY_MB
    )

    @verifier(name="json_schema", timeout_s=QUEUE_TIMEOUT_S)
    async def fits(reply: str, answer: Any) -> Score:
        """1 if it fits. Raises Unscorable for a reference that is no schema."""
        text = _reference(answer) if schema is None else json.dumps(schema)
        try:
            document, is_quick = await run_in_thread(lambda: _prepare(text, reply))
        except NotJson as error:
            return Score(value=0.0, explanation=str(error))
        try:
            if is_quick:
                problem = validate(text, document)
            else:
                problem = await in_process(in_worker, schema=text, document=document)
        except TimedOut:
            return Score(value=0.0, explanation=f"not validated in {timeout_s:g} s")
        except OutOfResources:
            return Score(value=0.0, explanation="took too much memory to validate")
        if problem.startswith(_UNRESOLVABLE):
            raise Unscorable(problem)
        return Score(value=float(not problem), explanation=problem)

    return fits


_UNRESOLVABLE = "the schema refers to what is not in it: "


def validate(schema: str, document: str) -> str:
    """Why a document does not fit a schema, both as JSON text; "" if it does."""
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        error = best_match(_validator(schema).iter_errors(json.loads(document)))
    except Unresolvable as unresolvable:
        return f"{_UNRESOLVABLE}{unresolvable}"[:300]
    return "" if error is None else f"{error.json_path}: {error.message}"[:300]


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    loaded = json.loads(schema)
    # With an empty registry, no reference is ever fetched.
    return validator_for(loaded, default=Draft202012Validator)(loaded, registry=Registry())


@functools.lru_cache(maxsize=256)
def _check_schema(schema: str) -> None:
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for

    loaded = json.loads(schema)
    if not isinstance(loaded, dict | bool):
        raise ValueError(f"a JSON schema is an object, got {schema!s:.80}")
    try:
        dialect: Any = validator_for(loaded, default=Draft202012Validator)
        dialect.check_schema(loaded)
    except SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.json_path}: {error.message:.200}") from None


def _reference(answer: Any) -> str:
    try:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        _check_schema(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise Unscorable(f"the task's answer is no JSON schema: {error}"[:300]) from None
    return text


def _prepare(schema: str, reply: str) -> tuple[str, bool]:
    """The reply's document as ASCII JSON, and whether it takes little time to validate."""
    document = read_answer(reply)
    is_small = count_nodes(document) <= _MAX_NODES_HERE
    return json.dumps(document), is_small and not _keywords(json.loads(schema)) & _SLOW_KEYWORDS


def _keywords(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        return set(schema).union(*map(_keywords, schema.values()))
    return set().union(*map(_keywords, schema)) if isinstance(schema, list) else set()
