"""What a generation lacks, folded beside the stream until it has all that the stream has.

A backfilled generation ends at its floors, and the stream has gone on since. Reading everything
again from there would leave the rows that are served standing still meanwhile; so the span is read
by a reader of its own, a slice between two micro-batches, and folded into that generation alone.
Where it arrives at the stream's position, the stream is folded into it from the next message on.

A crash in between costs a part of a slice: marks follow rows, fences drop what is repeated. What
the log does not hold any more is given up, and told (`streams.gaps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from schemas.errors import NotHeldError
from schemas.plan import ViewPlan
from streams.config import StreamConfig
from streams.folding import Folder, OutsideActions
from streams.generations import Generations
from streams.messages import ActionRun, decode_records
from streams.servers import Servers
from streams.source import Source

#: A slice: the longest time for which the stream waits, but for a read that takes longer itself.
SLICE_S: Final = 0.2


class CatchUp:
    """Catches up the lagging generations of `generations`, in the log `source`.

    Used by one task, the one that folds the stream.
    """

    def __init__(
        self,
        config: StreamConfig,
        servers: Servers,
        source: Source,
        generations: Generations,
    ) -> None:
        self._source, self._generations = source, generations
        self._partitions = config.partitions
        self._reader, self._clock_s = servers.open_reader(config), servers.clock_s

    async def step(self, standing: Mapping[int, int], stream: Folder) -> bool:
        """One slice. Whether a generation has caught up in a partition.

        standing: partition → the offset that the stream reads next, all before it being stored.
        stream: folds the stream. Raises StreamError.
        """
        until_s = self._clock_s() + SLICE_S
        arrived = False
        lagging = self._generations.lagging()
        for view, partition, at in lagging:
            end = standing[partition]
            try:
                while at < end:
                    at = await self._advance(view, partition, (at, end), stream)
                    if self._clock_s() >= until_s:
                        break
            except NotHeldError:
                await self._source.check()  # a log that replaced it would not hold it either
                await self._generations.give_up(view, partition, (at, end))
                at, arrived = end, True
            else:
                if at >= end:
                    self._generations.caught_up(view, partition)
                    arrived = True
            if self._clock_s() >= until_s:
                break
        if lagging and not self._generations.lagging():
            await self._reader.close()
        return arrived

    async def close(self) -> None:
        """Release the reader."""
        await self._reader.close()

    async def _advance(
        self, view: ViewPlan, partition: int, span: tuple[int, int], stream: Folder
    ) -> int:
        """Fold some records of the span, from its start on; the offset after them."""
        records = await self._reader.read(self._source.topic, partition, *span)
        run = decode_records(records, self._partitions)[0]  # refused ones are dead letters already
        floors = {view.key: {partition: self._generations.floor(view, partition)}}
        folder = beside(stream, view, floors)
        await folder.apply(run, self._source.check)
        newest = int(run.sent_ms.max()) if len(run) else 0
        at = int(records[-1].offset) + 1
        await self._generations.advance(view, partition, (at, newest))
        return at


def beside(
    stream: Folder, view: ViewPlan, floors: Mapping[tuple[str, int], Mapping[int, int]]
) -> Folder:
    """A folder of one lagging generation. It sends aside what `stream` would send for it: what its
    speaker judges alike was told when the stream passed, where the speaker took it.
    """
    speaker = stream.speakers.get(view.key)
    if speaker is not None:
        floors = {**floors, speaker.key: stream.floors.get(speaker.key, {})}
    return Folder(
        stream.store,
        (view,),
        stream.epoch,
        stream.side_output,
        stream.patience_ms,
        floors,
        speakers=stream.speakers,
        retention_ms=stream.retention_ms,
    )


async def nowhere(run: ActionRun, outside: list[OutsideActions]) -> None:
    """For a fold of history, whose late and future actions were told when the stream passed."""
