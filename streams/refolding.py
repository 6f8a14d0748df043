"""Messages of a re-keyed log that was lost, made again from the source and folded to the last.

A process that dies between rows and their source table leaves rows that are ahead of it. Read again
from the same log, the rows' fences drop what they have; in the log that replaces a lost one the
same actions come under other offsets, and nobody could tell. So before a row is written the pair
notes which ranges of the source each message covers (`streams.source_table.Pair.ahead`). From those
the messages are made again, as they were, and folded under their own offsets: rows that have one
drop it, rows that had not got it take it. Then the table is where the rows are, and the actions are
dropped by it when they come again.

Folding may be begun any number of times, by any process: fences see to it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from schemas.errors import NotHeldError
from schemas.plan import ViewPlan
from schemas.rekeyed import SOURCE_RANGE
from streams.folding import Folder
from streams.item_messages import RekeyedMessage, run_of
from streams.log_reader import LogReader
from streams.messages import ActionRun, decode_records, join_runs
from streams.rekey import rekey
from streams.source import Source
from streams.source_table import Covers, Pair, SourceTable

log = logging.getLogger("encore.streams")


@dataclass(frozen=True, slots=True)
class Refolding:
    """source: of which the lost log was made, with `partitions` as the re-keyed topic. reader: of
    its log. folder: of the lost log's epoch."""

    source: Source
    partitions: int
    reader: LogReader
    folder: Folder

    async def fold(self, partition: int, pair: Pair) -> bool:
        """Fold what the pair notes of its log, which is lost, and move the pair behind it.

        False where the source does not hold it any more: the pair is as it was. Messages of a lost
        log of the source are left out, see `unmakeable`. Raises StreamError, RowError.
        """
        left_out = unmakeable(pair, self.source.epoch)
        notes = {at: pair.ahead[at] for at in sorted(pair.ahead) if at not in left_out}
        try:
            read = await self._read(_spans(notes, pair.table))
        except NotHeldError as error:
            await self.source.check()  # a log that replaced it would not hold it either
            log.error("rows may be ahead of what the lost re-keyed log tells: %s", error)
            return False
        table = pair.table.copy()
        runs = list(self._runs(partition, notes, read, table))
        if runs:
            await self.folder.apply(join_runs(runs), self.source.check)
        log.info("folded %d messages of a lost re-keyed log to their end", len(runs))
        pair.table, pair.next_offset, pair.ahead = table, max(pair.ahead) + 1, {}
        return True

    async def _read(self, spans: Mapping[int, tuple[int, int]]) -> dict[int, ActionRun]:
        """The valid actions of the source's partitions in these spans of offsets."""
        found: dict[int, ActionRun] = {}
        for partition, (at, before) in spans.items():
            runs: list[ActionRun] = []
            while at < before:
                records = await self.reader.read(self.source.topic, partition, at, before)
                runs.append(decode_records(records, self.partitions)[0])
                at = int(records[-1].offset) + 1
            found[partition] = join_runs(runs)
        return found

    def _runs(
        self,
        partition: int,
        notes: Mapping[int, Covers],
        read: Mapping[int, ActionRun],
        table: SourceTable,
    ) -> Iterator[ActionRun]:
        """Of each message what the table, which goes on behind it, does not have."""
        for offset, covers in notes.items():
            where = f"{self.source.topic}, re-keyed into {partition}/{offset} of a lost log"
            ranges = np.array([(a, b, epoch, p) for p, epoch, a, b in covers], SOURCE_RANGE)
            parts = [_between(read[p], a, b) for p, _, a, b in covers if p in read]
            if not parts:
                continue
            batch = rekey(join_runs(parts), ranges, self.source.epoch, self.partitions)[partition]
            batch = replace(batch, sent_ms=0)  # of a part of it: says nothing of the time
            accepted = table.admit(batch, where)
            yield run_of(partition, [RekeyedMessage(where, offset, batch)], [accepted]).run


def unmakeable(pair: Pair, source_epoch: int) -> list[int]:
    """Offsets of noted messages that were made of a log of the source that is lost as well: no row
    that lacks one can be given it, and nothing of them comes again."""
    return [
        offset
        for offset, covers in sorted(pair.ahead.items())
        if any(epoch != source_epoch for _, epoch, _, _ in covers)
    ]


def in_lost_log(
    stream: Folder,
    views: tuple[ViewPlan, ...],
    speakers: Mapping[tuple[str, int], ViewPlan],
    partition: int,
    pair: Pair,
) -> Folder:
    """A folder of these views as `stream`, but in the log of the pair."""
    return Folder(
        stream.store,
        views,
        pair.epoch,
        stream.side_output,
        stream.patience_ms,
        speakers=speakers,
        ended={partition: pair.ended},
        retention_ms=stream.retention_ms,
    )


def _spans(notes: Mapping[int, Covers], table: SourceTable) -> dict[int, tuple[int, int]]:
    """Of each source partition [first, next) of what the messages cover beyond the table."""
    spans: dict[int, tuple[int, int]] = {}
    for covers in notes.values():
        for partition, epoch, first, after in covers:
            at_epoch, reached = table.reached.get(partition, (0, 0))
            begin = max(first, reached) if at_epoch == epoch else first
            begin, end = spans.get(partition, (begin, after))
            if after > begin:
                spans[partition] = begin, max(end, after)
    return spans


def _between(run: ActionRun, first: int, after: int) -> ActionRun:
    return run.at((run.offset >= first) & (run.offset < after))
