"""What makes a reward verifiable: functions that judge a finished episode."""

# Not lazily: importing the modules `number` and `exact` makes these names theirs, so the functions
# have to be bound right after.
from palestra.types import Score
from palestra.verifiers.exact import exact
from palestra.verifiers.number import number
from palestra.verifiers.run import check_verifier, run_verifier

__all__ = ["number", "exact", "run_verifier", "check_verifier", "Score"]
