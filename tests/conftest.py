"""What tests of several folders need."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from palestra.rollout.engine_errors import ServerNotStarted
from palestra.rollout.engine_python import find_python

# A shell that runs the tests in the background has them ignore Ctrl-C, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def engine_python() -> Callable[[str], Path]:
    """Finds the interpreter that has "vllm" or "sglang"; without one skips, or fails in CI."""

    def find(engine: str) -> Path:
        try:
            return find_python(engine)
        except ServerNotStarted as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error))
            pytest.skip(str(error))

    return find
