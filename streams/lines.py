"""Actions from lines of JSON into their topic: for people, small tools and tutorials.

A line is one action as in docs/actions.md, without `sent_ms`; `time_ms` may be left out and is the
moment of reading then. Volume belongs to producers that write batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.actions import action_of, check_actions
from schemas.errors import ActionError
from streams.producer import ActionProducer

#: Lines that are sent together at most; also the most that are held back while a reader waits.
GROUP_LINES: Final = 1_000
#: A group is sent at the next line after this, full or not.
GROUP_MS: Final = 1_000


@dataclass(slots=True)
class Sent:
    """What is in the log. ends: partition → the offset after the last message sent to it."""

    actions: int
    ends: dict[int, int]


def send_lines(
    lines: Iterable[str], producer: ActionProducer, clock: Callable[[], int], where: str
) -> Sent:
    """Send each line's action, in groups; blank lines are skipped. Blocking.

    clock: ms since 1970, read once a line; it may be set back. where: what the lines are of, for
    messages. Returns once all are confirmed. Raises ActionError for a line that is no action, after
    sending those before it; StreamError where the broker does not confirm.
    """
    sent = Sent(0, {})
    group: list[NDArray[np.void]] = []
    began_ms = read_ms = 0

    def flush(now_ms: int) -> None:
        if group:
            sent.ends |= producer.send(np.concatenate(group), now_ms)
            sent.actions += len(group)
            group.clear()

    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        now_ms = clock()
        if now_ms < read_ms:  # set back: what it told before would be of the future by it
            flush(read_ms)
        read_ms = now_ms
        try:
            action = parse_line(line, now_ms, f"{where}:{number}")
        except ActionError:
            flush(now_ms)
            raise
        began_ms = began_ms if group else now_ms
        group.append(action)
        if len(group) >= GROUP_LINES or now_ms - began_ms >= GROUP_MS:
            flush(now_ms)
    flush(read_ms)
    return sent


def parse_line(line: str, now_ms: int, where: str) -> NDArray[np.void]:
    """One line as (1,) of dtype ACTION. now_ms: its time where it gives none. Raises ActionError.

    >>> int(parse_line('{"user": 1, "item": 7, "type": "like"}', 1_650_000_000_000, "x")["item"][0])
    7
    """
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # the latter: brackets in brackets
        raise ActionError(
            where,
            required="one JSON object a line",
            got=f"{error}",
            do='for example {"user": 1, "item": 7, "type": "like"}',
        ) from None
    if isinstance(record, dict):
        record.setdefault("time_ms", now_ms)
    action = action_of(record, where)
    check_actions(action, where)
    return action
