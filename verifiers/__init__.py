"""What makes a reward verifiable: functions that judge a finished episode."""

# Not lazily: importing the modules `number`, `exact` and so on makes these names theirs, so the
# functions have to be bound right after.
from palestra.types import Score, Unscorable
from palestra.verifiers.choice import choice
from palestra.verifiers.code import code
from palestra.verifiers.combine import all_of, any_of, sequence
from palestra.verifiers.exact import exact
from palestra.verifiers.instructions import instructions
from palestra.verifiers.json_fields import json_fields
from palestra.verifiers.json_schema import json_schema
from palestra.verifiers.judge import judge
from palestra.verifiers.judge_agreement import (
    JudgedPair,
    JudgedReply,
    measure_judge,
    measure_pairwise_judge,
)
from palestra.verifiers.judge_pairwise import judge_pairwise
from palestra.verifiers.judge_rubric import Item, judge_rubric
from palestra.verifiers.lists import list_f1
from palestra.verifiers.math import math
from palestra.verifiers.normalized import normalized, token_f1
from palestra.verifiers.number import number
from palestra.verifiers.regex import regex
from palestra.verifiers.rubric import Part, Rubric
from palestra.verifiers.run import check_verifier, run_verifier
from palestra.verifiers.shaping import (
    language_consistency,
    repetition_penalty,
    think_answer_format,
    tool_call_count,
)
from palestra.verifiers.shaping_group import length_reward, overlong_penalty, tool_call_cost
from palestra.verifiers.sql import sql
from palestra.verifiers.state_checks import acted, on_file, state_equals, table_equals
from palestra.verifiers.tolerance import close_to
from palestra.verifiers.tool_calls import tool_calls
from palestra.verifiers.verifier import verifier

__all__ = [
    # one answer
    "number",
    "math",
    "close_to",
    "exact",
    "normalized",
    "token_f1",
    "choice",
    "regex",
    "list_f1",
    "json_schema",
    "json_fields",
    "sql",
    "tool_calls",
    "code",
    "instructions",
    # a model's verdict
    "judge",
    "judge_rubric",
    "Item",
    "judge_pairwise",
    "measure_judge",
    "measure_pairwise_judge",
    "JudgedReply",
    "JudgedPair",
    # the state that an episode leaves
    "acted",
    "on_file",
    "table_equals",
    "state_equals",
    # shaping
    "think_answer_format",
    "repetition_penalty",
    "language_consistency",
    "tool_call_count",
    "overlong_penalty",
    "length_reward",
    "tool_call_cost",
    # made of others
    "verifier",
    "Part",
    "Rubric",
    "all_of",
    "any_of",
    "sequence",
    "run_verifier",
    "check_verifier",
    "Score",
    "Unscorable",
]
