"""`ToolSource`: tools that exist only during an episode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from palestra.tools.tool import Tool
from palestra.types import Task


class ToolSource(ABC):
    """Opens something for each episode (a connection, a copy of a database) and makes tools of it.

    It stands in the list of an environment's tools. One source serves all environments that list
    it: what belongs to an episode belongs into what `open` returns.
    """

    name: str

    @abstractmethod
    def open(self, task: Task) -> AbstractAsyncContextManager[Sequence[Tool]]:
        """The tools of one episode: entered at its reset, left at its end, whatever ends it.

        A tool whose name another tool has already is renamed to "SOURCE_TOOL".
        """

    # Gymnasium copies the arguments of environments.
    def __copy__(self) -> ToolSource:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ToolSource:
        return self
