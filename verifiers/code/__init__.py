"""Verifiers of programs: tests that the program under test cannot reach."""

from palestra.verifiers.code.verify import code

__all__ = ["code"]
