"""How a count is compared with what an instruction asks for: at least, less than, around, …"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

# "around" allows a tenth either way, and always one.
AROUND = 0.1

RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "at least": lambda count, target: count >= target,
    "at most": lambda count, target: count <= target,
    "less than": lambda count, target: count < target,
    "more than": lambda count, target: count > target,
    "exactly": lambda count, target: count == target,
    "around": lambda count, target: abs(count - target) <= max(1, math.ceil(target * AROUND)),
}


def unless(count: float, relation: str, target: float, what: str) -> str:
    """ "" if the count is as asked for; else e.g. "12 words, not at least 20"."""
    if RELATIONS[relation](count, target):
        return ""
    return f"{count:,g} {what}, not {relation} {target:,g}"
