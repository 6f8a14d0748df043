"""How good the value of one (row, view) is. The numbers are part of the rank log's contract."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """PRESENT and STALE carry a value; NOT_FOUND is the empty state of a streamed view (counts 0)
    and null for a batch view; the others are null, so every slot of the view is id 0."""

    PRESENT = 0
    NOT_FOUND = 1
    STALE = 2
    TIMEOUT = 3
    STORE_ERROR = 4
    CORRUPT = 5


class FieldStatus(IntEnum):
    """Feast's status of one feature of one entity, by Feast's numbers.

    PRESENT also for the empty state of a streamed view, whose counts are 0. INVALID where the row
    could not be read (TIMEOUT, STORE_ERROR, CORRUPT). OUTSIDE_MAX_AGE beyond a batch view's TTL.
    """

    INVALID = 0
    PRESENT = 1
    NULL_VALUE = 2
    NOT_FOUND = 3
    OUTSIDE_MAX_AGE = 4


#: Statuses whose features are null whatever the kind of view.
FAILED = (Status.TIMEOUT, Status.STORE_ERROR, Status.CORRUPT)
