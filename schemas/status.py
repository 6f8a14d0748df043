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


#: Statuses whose features are null whatever the kind of view.
FAILED = (Status.TIMEOUT, Status.STORE_ERROR, Status.CORRUPT)
