"""Durations as people write them: `7 min`, `1 d`, `5 or 10 min`."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

_UNITS: Final = ((DAY_MS, "d"), (HOUR_MS, "h"), (MINUTE_MS, "min"), (SECOND_MS, "s"), (1, "ms"))


def to_ms(duration: timedelta) -> int:
    """Whole milliseconds; a finer part is cut off.

    >>> to_ms(timedelta(minutes=5))
    300000
    """
    return duration // timedelta(milliseconds=1)


def split(duration_ms: int) -> tuple[int, str]:
    """The number and the largest unit that divides it.

    >>> split(90 * MINUTE_MS), split(DAY_MS), split(0)
    ((90, 'min'), (1, 'd'), (0, 'ms'))
    """
    for unit_ms, name in _UNITS:
        if duration_ms and duration_ms % unit_ms == 0:
            return duration_ms // unit_ms, name
    return duration_ms, "ms"


def text(duration_ms: int) -> str:
    """For messages.

    >>> text(7 * MINUTE_MS)
    '7 min'
    """
    number, unit = split(duration_ms)
    return f"{number} {unit}"


def label(duration_ms: int) -> str:
    """For names of stored fields.

    >>> label(5 * MINUTE_MS), label(HOUR_MS)
    ('5min', '1h')
    """
    number, unit = split(duration_ms)
    return f"{number}{unit}"


def either(first_ms: int, second_ms: int) -> str:
    """Two durations, their unit once where it is shared.

    >>> either(5 * MINUTE_MS, 10 * MINUTE_MS), either(23 * HOUR_MS, DAY_MS)
    ('5 or 10 min', '23 h or 1 d')
    """
    (first, unit), (second, other) = split(first_ms), split(second_ms)
    return f"{first} or {second} {unit}" if unit == other else f"{first} {unit} or {second} {other}"
