"""What a log with several holes still holds is read, and exactly the rest is called lost."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aiokafka.structs import ConsumerRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import NotHeldError
from streams.collecting import Rest, collect
from streams.origins import Log
from tests.streams.test_backfill import ListReader, archive
from tests.streams.test_filling import messages


@dataclass
class Holed(ListReader):
    """A log that lost any of its messages, but its last one. gone: their offsets."""

    gone: frozenset[int] = frozenset()

    async def read(
        self, topic: str, partition: int, first: int, before: int
    ) -> tuple[ConsumerRecord, ...]:
        there = next(at for at in range(first, before + len(self.gone) + 1) if at not in self.gone)
        if there > first:
            lost = NotHeldError("t", required="r", got="g")
            lost.next_offset = there
            raise lost
        after = min([before, *(at for at in self.gone if at > first)])
        return await super().read(topic, partition, first, after)


@settings(max_examples=30)  # each writes files
@given(gone=st.frozensets(st.integers(0, 7)))
def test_what_a_log_holds_between_holes_is_not_lost(gone: frozenset[int]) -> None:
    """All of it is read, and exactly the rest is counted as lost."""
    sent, log = messages(9), Log("t", "id", 1)
    end = len(sent[0])
    with tempfile.TemporaryDirectory() as at:
        root = Path(at)
        archive(root / "archive", "id", 0, sent[0][:1], 0)
        rest = Rest(Holed(sent, gone=gone), root / "aside", accept_loss=True)
        found = asyncio.run(collect(root / "archive", log, {0: end}, rest))
        rows = sum(file.rows for file in found.files[0])
    lost = {at for loss in found.lost for at in range(loss.first, loss.next_offset)}
    assert lost == {at for at in gone if at >= 1}, "the first is in the archive"
    assert found.read == end - 1 - len(lost)
    assert rows == sum(len(sent[0][at][0]) for at in range(end) if at not in lost)
    assert found.messages_missing == len(lost)
