"""Runs tests against a program that is elsewhere: asserts, unittest or pytest."""

from __future__ import annotations

import sys
from typing import Any

from palestra.verifiers.code.guest.proxies import Client, ProgramModule, function_of
from palestra.verifiers.code.guest.run_asserts import run_asserts
from palestra.verifiers.code.guest.run_pytest import run_pytest
from palestra.verifiers.code.guest.run_unittest import run_unittest
from palestra.verifiers.code.guest.tally import Tally

TEST_MODULE = "test_program"
_RUNNERS = {"asserts": run_asserts, "unittest": run_unittest, "pytest": run_pytest}


def run_tests(job: dict[str, Any], client: Client) -> dict[str, Any]:
    """Run a job's tests: `source` by `runner` ("asserts", "unittest" or "pytest").

    The program is the module `module`; its `names` are also there without an import. `setup` is
    run before, with what the tests need. `stop_early` ends at the first test that fails.
    """
    tally = Tally(client)
    sys.modules[job["module"]] = ProgramModule(client, job["module"])
    namespace: dict[str, Any] = {"__name__": TEST_MODULE}
    try:
        # Trusted helpers come first, then the names that only the program has.
        exec(compile(job["setup"], "setup.py", "exec", dont_inherit=True), namespace)
        for name in job["names"]:
            namespace[name] = function_of(client, name)
        _RUNNERS[job["runner"]](job, namespace, client, tally)
    except BaseException as error:
        if client.asked == 0 or _misses_module(error, job["module"]):
            tally.broken = f"{type(error).__name__}: {error}"[:300]
        else:
            tally.fail(error)
    return tally.report()


def _misses_module(error: BaseException, program: str) -> bool:
    """Whether the tests import something that is not here, the program aside."""
    raised_by_answer = getattr(error, "raised_by_answer", False)
    return isinstance(error, ImportError) and not raised_by_answer and error.name != program
