"""What a folding process sends aside: refused messages, and actions outside a view's time bounds.

Both are confirmed before the messages they came from count as stored, so a crash repeats them and
never loses one; their `encore-source` header tells repetitions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from schemas.actions import encode_batch
from schemas.errors import TooLargeError
from schemas.names import (
    HEADER_CODE,
    HEADER_REASON,
    HEADER_SOURCE,
    HEADER_VIEW,
    dead_letter_topic,
    late_topic,
)
from streams.app import Sender
from streams.folding import OutsideActions
from streams.heartbeat import Tally
from streams.messages import ActionRun, DeadLetter
from streams.overlap import overlapped

#: Messages on their way to the broker at once: one at a time, each would cost a round trip.
AT_ONCE: Final = 100

#: Topic, key, value, headers.
Message = tuple[str, bytes | None, bytes | None, dict[str, bytes]]

log = logging.getLogger("encore.streams")


async def send_letter(send: Sender, topic: str, letter: DeadLetter) -> None:
    """Confirm a refused message with its reason, in that dead-letter topic.

    Of one that is too large for that, reason, place and size: nobody would get past it otherwise.
    The client sends no record that is null as a whole; an empty one stands for it. Raises
    StreamError.
    """
    record = letter.record
    value = b"" if record.key is None and record.value is None else record.value
    log.warning("dead letter: %s", letter.error)
    try:
        await send(topic, record.key, value, letter.headers())
    except TooLargeError as error:
        log.warning("dead letter without its bytes: %s", error)
        await send(topic, None, b"", letter.headers_alone())


class SideOutputs:
    """The dead-letter topic and the late topic of one topic."""

    def __init__(self, topic: str, send: Sender) -> None:
        self._topic, self._send = topic, send
        self.tally = Tally()
        self.dead_letters = 0

    async def send_dead(self, dead: list[DeadLetter]) -> None:
        """Confirms each refused message with its reason."""
        topic = dead_letter_topic(self._topic)
        await overlapped((send_letter(self._send, topic, letter) for letter in dead), AT_ONCE)
        for letter in dead:
            self.tally.of(int(letter.record.partition)).dead += 1
        self.dead_letters += len(dead)

    async def send_late(self, run: ActionRun, outside: list[OutsideActions]) -> None:
        """One message for each source message, view and reason; returns once all are confirmed."""
        messages = (message for group in outside for message in self._late(run, group))
        await overlapped((self._confirmed(*message) for message in messages), AT_ONCE)

    def _late(self, run: ActionRun, group: OutsideActions) -> Iterator[Message]:
        part = run.at(group.at)
        keys = (part.partition.tolist(), part.offset.tolist(), part.sent_ms.tolist())
        sources = list(zip(*keys, strict=True))
        starts = [i for i, source in enumerate(sources) if i == 0 or source != sources[i - 1]]
        for start, end in zip(starts, [*starts[1:], len(sources)], strict=True):
            actions, (partition, offset, sent_ms) = part.actions[start:end], sources[start]
            self._count(group.reason, partition, len(actions))
            headers = {
                HEADER_CODE: group.reason.encode(),
                HEADER_REASON: f"{group.reason} for {group.view}".encode(),
                HEADER_VIEW: group.view.encode(),
                HEADER_SOURCE: f"{self._topic}/{partition}/{offset}".encode(),
            }
            key = b"%d" % int(actions["user"][0])
            yield late_topic(self._topic), key, encode_batch(actions, sent_ms), headers

    async def _confirmed(
        self, topic: str, key: bytes | None, value: bytes | None, headers: dict[str, bytes]
    ) -> None:
        await self._send(topic, key, value, headers)

    def _count(self, reason: str, partition: int, actions: int) -> None:
        counts = self.tally.of(partition)
        if reason == "late":
            counts.late += actions
        else:
            counts.future += actions
