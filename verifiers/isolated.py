"""Work for a killable process: verifiers of what may take any time or memory to look at."""

from __future__ import annotations

import json
from typing import Any

from palestra.tools.isolation import run_isolated
from palestra.tools.tool import Tool
from palestra.types import Failure

# Waiting for one of the processes is not the answer's time: what runs there has its own limit, and
# a verifier that uses them declares this one.
QUEUE_TIMEOUT_S = 600.0


async def in_process(tool: Tool, **arguments: Any) -> str:
    """What an isolated function of this package returns, as text; at most 16,000 characters.

    Raises:
        ToolError, TimedOut, OutOfResources: as the call went.
        Failure: the function is broken (cause "verifier").
    """
    try:
        return await run_isolated(tool, json.dumps(arguments))
    except Failure as failure:
        raise Failure("verifier", failure.detail) from failure
