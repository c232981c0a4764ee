import asyncio
import contextvars
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palestra.tools import State, TimeLimit, Tool, ToolError, parse_reply, run_call, tool
from palestra.types import Failure, ToolResult, Unscorable


class Basket(State):
    def __init__(self) -> None:
        self.items: list[str] = []


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def run(
    tools: Tool | list[Tool], call: Any = None, hidden: Any = None, **arguments: Any
) -> ToolResult:
    """The result of calling the first tool, or of `call`."""
    tools = tools if isinstance(tools, list) else [tools]
    if call is None:
        call = {"id": "call_7", "function": {"name": tools[0].name, "arguments": arguments}}
    by_name = {tool.name: tool for tool in tools}
    return asyncio.run(run_call(call, by_name, hidden or {}))


def returning(value: Any) -> Tool:
    @tool(name="f")
    def f() -> Any:
        return value

    return f


def raising(error: BaseException) -> Tool:
    @tool(name="f")
    def f() -> None:
        raise error

    return f


def raising_async(error: BaseException) -> Tool:
    @tool(name="f")
    async def f() -> None:
        raise error

    return f


def test_a_call_gets_the_tools_answer_under_its_id() -> None:
    result = run(add, a=17, b=25)
    assert result == ToolResult(
        call_id="call_7", name="add", content="42", duration_s=result.duration_s
    )
    assert 0 < result.duration_s < 10


def test_arguments_may_be_json_text() -> None:
    assert (
        run(add, {"id": "x", "function": {"name": "add", "arguments": '{"a":1,"b":2}'}}).content
        == "3"
    )


def test_an_async_tool_runs_on_the_event_loop_and_a_plain_one_does_not() -> None:
    @tool
    async def inline() -> bool:
        return threading.current_thread() is threading.main_thread()

    @tool
    def threaded() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert (run(inline).content, run(threaded).content) == ("true", "false")


def test_plain_tools_run_concurrently() -> None:
    together = threading.Barrier(8, timeout=10)

    @tool
    def meet() -> int:
        return together.wait()

    async def main() -> list[ToolResult]:
        call = {"id": "1", "function": {"name": "meet", "arguments": {}}}
        return await asyncio.gather(*(run_call(call, {"meet": meet}, {}) for _ in range(8)))

    assert sorted(result.content for result in asyncio.run(main())) == list("01234567")


def test_context_variables_reach_a_plain_tool() -> None:
    episode = contextvars.ContextVar("episode", default="none")

    @tool
    def which() -> str:
        return episode.get()

    async def main() -> ToolResult:
        episode.set("e1")
        return await run_call({"function": {"name": "which"}}, {"which": which}, {})

    assert asyncio.run(main()).content == "e1"


@pytest.mark.parametrize("wanted", [Basket, State])
def test_hidden_parameters_are_injected_by_type(wanted: type) -> None:
    @tool
    def put(item: str, basket: Basket) -> int:
        basket.items.append(item)
        return len(basket.items)

    basket = Basket()
    assert run(put, hidden={wanted: basket}, item="apple").content == "1"
    assert basket.items == ["apple"]


def test_a_model_cannot_pass_a_hidden_parameter() -> None:
    @tool
    def put(item: str, basket: Basket) -> None: ...

    result = run(put, hidden={State: Basket()}, item="apple", basket={})
    assert (result.error, result.content) == (
        "bad_arguments",
        'unexpected argument "basket"; put takes item',
    )


def test_an_environment_without_the_wanted_state_is_at_fault() -> None:
    @tool
    def put(item: str, basket: Basket) -> None: ...

    with pytest.raises(Failure, match=r"needs a Basket, the environment has State: .*state=Basket"):
        run(put, hidden={State: State()}, item="apple")


# What the call itself gets wrong


@pytest.mark.parametrize(
    ("reply", "kind", "expected"),
    [
        ('<tool_call>{"name": "ad"}</tool_call>', "unknown_tool",
         'unknown tool "ad", did you mean "add"? Available: add'),
        ('<tool_call>{"name": "zzz"}</tool_call>', "unknown_tool",
         'unknown tool "zzz". Available: add'),
        ('<tool_call>{"name": "add", "arguments": "nope"}</tool_call>', "bad_json",
         "the arguments are not valid JSON: expected ident at line 1 column 2"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "bad_json",
         "the arguments must be a JSON object, got [1]"),
        ('<tool_call>{"name": "add"}</tool_call>', "bad_arguments",
         'missing argument "a" (integer)\nmissing argument "b" (integer)'),
        ('<tool_call>{"name": "add"</tool_call>', "bad_json",
         "this is no call, it is not valid JSON (Expecting ',' delimiter at character 15): "
         'write {"name": <tool name>, "arguments": <object>}'),
        ("<tool_call>[1]</tool_call>", "bad_json",
         'this is no call, it is [1] and not a JSON object: write {"name": <tool name>, '
         '"arguments": <object>}'),
        ('<tool_call>{"arguments": {}}</tool_call>', "bad_json",
         'this is no call, it names no tool: write {"name": <tool name>, "arguments": <object>}'),
        ('<tool_call>{"name": "add", "argum', "cut",
         "the call was cut off before its end: write a shorter one"),
    ],
)  # fmt: skip
def test_a_malformed_call_is_answered(reply: str, kind: str, expected: str) -> None:
    (call,) = parse_reply(reply)["tool_calls"]
    result = run(add, call)
    assert (result.error, result.content, result.call_id) == (kind, expected, "call_0")


def test_without_tools_a_call_is_told_so() -> None:
    result = asyncio.run(run_call({"function": {"name": "f"}}, {}, {}))
    assert result.content == 'unknown tool "f". There are no tools'


_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)  # the machine is shared
@given(
    _junk
    | st.fixed_dictionaries({}, optional={"id": _junk, "function": _junk, "error": _junk})
    | st.fixed_dictionaries(
        {
            "function": st.fixed_dictionaries(
                {}, optional={"name": _junk | st.just("add"), "arguments": _junk}
            )
        }
    )
)
def test_a_call_of_any_shape_is_answered_in_text_that_can_be_stored(call: Any) -> None:
    result = run(add, call if call is not None else 0)
    assert result.error in ("bad_json", "unknown_tool", "bad_arguments", "cut")
    json.dumps(result.message(), ensure_ascii=False).encode()
    assert len(result.content) < 20_000


def test_a_circular_argument_is_answered() -> None:
    circular: dict[str, Any] = {}
    circular["a"] = circular
    assert run(add, {"function": {"name": "add", "arguments": circular}}).error == "bad_json"


# What the tool says or the arguments provoke


@pytest.mark.parametrize("make", [raising, raising_async])
def test_a_tool_error_is_an_answer(make: Any) -> None:
    result = run(make(ToolError("no such city")))
    assert (result.error, result.content) == ("tool_error", "no such city")


@pytest.mark.parametrize("make", [raising, raising_async])
@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("too deep"), OverflowError("too large")]
)
def test_running_out_of_resources_is_an_answer(make: Any, error: Exception) -> None:
    result = run(make(error))
    assert result.error == "resources"
    assert result.content.startswith(f"f ran out of resources: {type(error).__name__}")


def test_real_runaway_recursion_is_an_answer() -> None:
    @tool
    def dive(depth: int) -> int:
        return dive(depth + 1)

    assert run(dive, depth=0).error == "resources"


def test_a_plain_tool_times_out_and_leaves_the_next_call_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()

    @tool(timeout_s=0.05)
    def sluggish(wait: bool) -> str:
        if wait:
            release.wait(30)
        return "done"

    start = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        results = [run(sluggish, wait=True), run(sluggish, wait=True), run(sluggish, wait=False)]
    assert time.perf_counter() - start < 10
    release.set()
    assert [result.error for result in results] == ["timeout", "timeout", None]
    assert results[0].content == "sluggish timed out after 0.05 s"
    assert [record.getMessage()[:23] for record in caplog.records] == ["tool sluggish timed out"]


def test_an_async_tool_times_out_and_is_cancelled() -> None:
    cancelled = []

    @tool(timeout_s=0.05)
    async def sluggish() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert run(sluggish).error == "timeout"
    assert cancelled == [True]


# What is the tool's own fault


@pytest.mark.parametrize("make", [raising, raising_async])
@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (TypeError("unsupported"), "TypeError: unsupported"),
        (ValueError(), "ValueError"),
        (TimeoutError("the database is slow"), "TimeoutError: the database is slow"),
        (SystemExit(3), "SystemExit: 3"),
        (OSError("two\nlines \ud800"), "OSError: two lines �"),
        (ValueError("x" * 999), "ValueError: " + "x" * 287 + "…"),
    ],
)
def test_any_other_exception_is_a_failure_of_the_tool(
    make: Any, error: BaseException, detail: str
) -> None:
    with pytest.raises(Failure) as raised:
        run(make(error))
    assert (raised.value.cause, raised.value.detail) == ("tool:f", detail)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [StopIteration(), asyncio.CancelledError(), GeneratorExit()])
def test_exceptions_that_asyncio_would_misread_are_failures_too(error: BaseException) -> None:
    with pytest.raises(Failure, match=type(error).__name__):
        run(raising(error))


def test_an_async_tool_that_awaits_something_cancelled_is_a_failure() -> None:
    with pytest.raises(Failure, match="CancelledError inside the tool"):
        run(raising_async(asyncio.CancelledError()))


@pytest.mark.parametrize("error", [Failure("engine", "gone"), Unscorable("no judge")])
def test_a_verdict_on_the_episode_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        run(raising(error))
    assert raised.value is error


def test_a_forgotten_await_is_a_failure() -> None:
    async def fetch() -> str:
        return "page"

    @tool
    def search() -> Any:
        return fetch()

    with pytest.raises(Failure, match="returned an awaitable: define it with `async def`"):
        run(search)


@pytest.mark.parametrize("is_async", [True, False])
def test_cancelling_a_call_cancels_it(is_async: bool) -> None:
    release = threading.Event()

    @tool
    async def sleep() -> None:
        await asyncio.sleep(30)

    @tool
    def block() -> None:
        release.wait(30)

    async def main() -> None:
        used = sleep if is_async else block
        call = {"function": {"name": used.name, "arguments": {}}}
        task = asyncio.create_task(run_call(call, {used.name: used}, {}))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    release.set()


# What a tool returns


class Place(pydantic.BaseModel):
    name: str


@dataclasses.dataclass
class Size:
    width: float


class Odd:
    def __str__(self) -> str:
        return "odd"


_circular: list[Any] = []
_circular.append(_circular)


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("text", "text"),
        ("", ""),
        (None, ""),
        (3, "3"),
        (0.1, "0.1"),
        (True, "true"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        ("é😀", "é😀"),
        (["é"], '["é"]'),
        (Place(name="Rome"), '{"name":"Rome"}'),
        ([Size(width=1.5)], '[{"width":1.5}]'),
        (Odd(), '"odd"'),
        (_circular, "[[...]]"),
        ("a\0b\ud800c", "a�b�c"),
        (["\ud800"], "['\\ud800']"),
    ],
)
def test_what_a_tool_returns_reaches_the_model_as_text(value: Any, content: str) -> None:
    assert run(returning(value)).content == content


def test_long_output_loses_its_middle() -> None:
    content = run(returning("a" * 10_000 + "b" * 10_000)).content
    assert content == "a" * 8_000 + "\n[… 4,000 characters cut …]\n" + "b" * 8_000


@settings(deadline=None)  # the machine is shared
@given(st.text(st.characters(), max_size=50))
def test_any_text_of_a_tool_can_be_stored(text: str) -> None:
    content = run(returning(text)).content
    content.encode()
    assert "\0" not in content
    if text.isprintable():
        assert content == text


def test_a_custom_mapping_is_a_call_too() -> None:
    class Frozen(Mapping[str, Any]):
        def __init__(self, **items: Any) -> None:
            self._items = items

        def __getitem__(self, key: str) -> Any:
            return self._items[key]

        def __iter__(self) -> Any:
            return iter(self._items)

        def __len__(self) -> int:
            return len(self._items)

    call = Frozen(id="c", function=Frozen(name="add", arguments='{"a": 1, "b": 1}'))
    assert run(add, call).content == "2"


def test_a_tool_that_keeps_its_time_is_told_it_and_not_cut_off() -> None:
    @tool(timeout_s=0.05)
    async def nap(limit: TimeLimit) -> str:
        await asyncio.sleep(0.2)
        return f"{limit.seconds:g} s were given"

    assert nap.parameters["properties"] == {}
    result = run(nap)
    assert (result.error, result.content) == (None, "0.05 s were given")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"caf\xc3\xa9", "café"),
        (b"\xff\xfe", "[binary data, 2 bytes, not shown]"),
        (b"a\0b", "[binary data, 3 bytes, not shown]"),
        (bytearray(b"x"), "x"),
    ],
)
def test_bytes_are_shown_as_text_or_named(data: bytes, text: str) -> None:
    assert run(returning(data)).content == text
