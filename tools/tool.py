"""`@tool`: a Python function that a model can call."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import re
import sys
from collections.abc import Callable
from typing import Any, Generic, overload

# Python's own take no defaults below 3.13; with them, `Tool` alone means `Tool[..., Any]`.
from typing_extensions import ParamSpec, TypeVar

from palestra.tools.schema import Arguments, ToolArguments
from palestra.types import ToolSchema

P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Tool(Generic[P, R]):
    """A function with a name, a description and a schema; called directly, it is the function.

    `parameters` is the JSON schema of what the model passes, `hidden` the types of what the
    environment passes (`State`), by parameter name. `timeout_s` bounds a call; `isolated` tools run
    in a process that is killed at its timeout and may take `memory_mb` beyond what it has at start.
    A call that succeeds ends the episode if `ends_episode`: what it returns, unless that is
    nothing, is what the verifier gets as the reply.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout_s: float = 30.0,
        isolated: bool = False,
        memory_mb: int = 1024,
        ends_episode: bool = False,
        arguments: ToolArguments | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f'"{self.name}" cannot be a tool\'s name: use up to 64 letters, digits, _ and -, '
                "as in @tool(name=…)"
            )
        self.arguments = (
            Arguments(function, tool_name=self.name) if arguments is None else arguments
        )
        self.description = self.arguments.description if description is None else description
        self.parameters = self.arguments.json_schema
        self.hidden = self.arguments.hidden
        self.timeout_s = timeout_s
        self.isolated = isolated
        self.memory_mb = memory_mb
        self.ends_episode = ends_episode
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(type(function), "__call__", None)  # noqa: B004
        )
        self._check()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def with_options(self, **changes: Any) -> Tool[P, R]:
        """The same tool with other options of `@tool`, e.g. `python.with_options(timeout_s=5)`."""
        if unknown := changes.keys() - self._options().keys():
            raise ValueError(
                f"a tool has no option {', '.join(sorted(unknown))}: it has "
                f"{', '.join(self._options())}"
            )
        arguments = None if isinstance(self.arguments, Arguments) else self.arguments
        return Tool(self.function, arguments=arguments, **{**self._options(), **changes})

    def schema(self) -> ToolSchema:
        """The tool in OpenAI's form: {"type": "function", "function": {"name": …}}."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}

    def __repr__(self) -> str:
        return f"<tool {self.name}({', '.join(self.parameters['properties'])})>"

    def __copy__(self) -> Tool[P, R]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tool[P, R]:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        module, qualname = self.__module__, getattr(self, "__qualname__", "")
        try:
            if operator.attrgetter(qualname)(sys.modules[module]) is self:
                return qualname  # pickled by name
        except (AttributeError, KeyError):
            pass
        return functools.partial(Tool, **self._options()), (self.function,)

    def _options(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": self.description,
            "timeout_s": self.timeout_s,
            "isolated": self.isolated,
            "memory_mb": self.memory_mb,
            "ends_episode": self.ends_episode,
        }

    def _check(self) -> None:
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueError(
                f"timeout_s of tool {self.name} must be a positive number of seconds, "
                f"got {self.timeout_s}"
            )
        if self.memory_mb < 1:
            raise ValueError(
                f"memory_mb of tool {self.name} must be at least 1, got {self.memory_mb}"
            )
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise ValueError(f"tool {self.name} is a generator: return a list instead of yielding")
        if not self.isolated:
            return
        if self.hidden:
            raise ValueError(
                f'isolated tool {self.name} cannot take "{next(iter(self.hidden))}": it runs in '
                "another process, where it would only change a copy of the state"
            )
        qualname = getattr(self.function, "__qualname__", "<object>")
        if "<" in qualname:  # <locals>, <lambda>
            raise ValueError(
                f"isolated tool {self.name} must be defined at module level, where its process "
                f"can import it, got {qualname}"
            )
        if self.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
            raise ValueError(
                f"isolated tool {self.name} must be defined in a file, where its process can "
                "import it, not interactively"
            )


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float = 30.0,
    isolated: bool = False,
    memory_mb: int = 1024,
    ends_episode: bool = False,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(function: Callable[P, R] | None = None, /, **options: Any) -> Any:
    """Make a function a tool; its schema comes from its type hints and docstring.

        @tool
        def add(a: int, b: int) -> int:
            '''Add two integers.'''
            return a + b

    Plain functions run in a thread, `async` ones on the event loop, `isolated=True` ones in a
    process of their own. A raised `ToolError` is an answer for the model; any other exception means
    that the tool is broken, and the episode fails. What a tool returns reaches the model as text:
    strings as they are, None as nothing, the rest as JSON. A tool with `ends_episode=True` is the
    last that is called: it submits the answer.

    Raises:
        ValueError: parameters that a model cannot be told about or pass by name, an option out of
            range, or an isolated tool that another process could not import.
    """
    if function is None:
        return lambda decorated: Tool(decorated, **options)
    return Tool(function)
