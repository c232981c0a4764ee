"""Instruction following: constraints on a reply that can be checked without a model."""

from palestra.verifiers.instructions.constraint import Constraint, Verdict
from palestra.verifiers.instructions.registry import KINDS
from palestra.verifiers.instructions.verify import constraints_of, instructions

__all__ = ["instructions", "Constraint", "Verdict", "KINDS", "constraints_of"]
