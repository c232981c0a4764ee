"""The share of episodes that did not count, and when to be alarmed by it (DESIGN §2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palestra.view.run_files import Row, finite

ALARM_SHARE = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Masked:
    """`episodes` is None where the run does not tell how many there were."""

    masked: float
    episodes: float | None
    grows: bool

    @property
    def share(self) -> float | None:
        return self.masked / self.episodes if self.episodes else None

    @property
    def alarming(self) -> bool:
        return self.grows or (self.share or 0.0) > ALARM_SHARE


def masked_episodes(rows: Sequence[Row], group_size: float | None) -> Masked:
    """Count masked episodes over all steps and compare the halves of the run.

    A row's `episodes` counts all that were sampled, masked ones included; without it the number
    is groups times `group_size`.
    """
    half = len(rows) // 2
    early, late = _count(rows[:half], group_size), _count(rows[half:], group_size)
    episodes = None if early[1] is None or late[1] is None else early[1] + late[1]
    return Masked(masked=early[0] + late[0], episodes=episodes, grows=_grows(*early, *late))


def group_size(config: Mapping[str, Any]) -> float | None:
    """The configuration's `group_size`, at its top or in one of its tables."""
    for table in (config, *config.values()):
        if isinstance(table, Mapping) and (size := finite(table.get("group_size"))) is not None:
            return size
    return None


def _count(rows: Sequence[Row], group_size: float | None) -> tuple[float, float | None]:
    masked = sum(
        max(finite(count) or 0.0, 0.0)
        for row in rows
        if isinstance(causes := row.get("masked"), dict)
        for count in causes.values()
    )
    episodes = 0.0
    for row in rows:
        number = finite(row.get("episodes"))
        if number is None:
            kept, dropped = finite(row.get("groups_kept")), finite(row.get("groups_dropped"))
            if kept is None or group_size is None:
                return masked, None
            number = (kept + (dropped or 0.0)) * group_size
        episodes += max(number, 0.0)
    return masked, episodes


def _grows(
    masked_early: float,
    episodes_early: float | None,
    masked_late: float,
    episodes_late: float | None,
) -> bool:
    """Whether the later share is larger by three standard errors (two-proportion test)."""
    if not episodes_early or not episodes_late:
        return False
    pooled = (masked_early + masked_late) / (episodes_early + episodes_late)
    variance = pooled * (1 - pooled) * (1 / episodes_early + 1 / episodes_late)
    difference = masked_late / episodes_late - masked_early / episodes_early
    return variance > 0 and difference > 3 * math.sqrt(variance)
