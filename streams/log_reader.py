"""Reading a span of one partition, outside any consumer group: nothing is committed by it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, ClassVar, Final, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord

from schemas.errors import NotHeldError, StreamError
from streams.second_look import LOOKS_S

FETCH_BYTES: Final = 4 << 20
READ_RECORDS: Final = 5_000
POLL_MS: Final = 200


class LogReader(Protocol):
    """Reads records that are known to be in a log."""

    async def read(
        self, topic: str, partition: int, first: int, before: int
    ) -> tuple[ConsumerRecord, ...]:
        """Records with consecutive offsets from `first` on, at least one, all below `before`.

        first < before. Raises NotHeldError where the log does not hold `first` any more, with the
        offset of the record behind it, unless nothing before that is left either; another
        StreamError where the broker does not answer.
        """
        ...

    async def close(self) -> None:
        """Release the connection; the next read makes another."""
        ...


async def first_held(
    reader: LogReader, topic: str, partition: int, before: int, begin: int = 0
) -> int:
    """The first offset from `begin` on that the log holds, `before` where it holds none below that.

    A log may have lost several parts. Of one in its midst the reader tells where it ends; the
    log's beginning is found by bisection, so that a broker's own list of offsets is not asked.
    Raises StreamError.
    """
    low, high, found = begin, before, before
    while low < high:
        middle = (low + high) // 2 if low > begin else begin  # most logs hold all
        try:
            await reader.read(topic, partition, middle, middle + 1)
        except NotHeldError as error:
            if error.next_offset is None:
                low = middle + 1
            else:
                high, found = middle, min(error.next_offset, before)
        else:
            high = found = middle
    return found


async def is_held(reader: LogReader, topic: str, partition: int, offset: int) -> bool:
    """Whether the log, which ends behind it, holds that offset. Raises StreamError."""
    try:
        await reader.read(topic, partition, offset, offset + 1)
    except NotHeldError:
        return False
    return True


class KafkaLogReader:
    """A `LogReader` over a broker. Connects when it is first asked.

    pauses_s: after each it asks again for what seems to be missing (`streams.second_look`).
    """

    pauses_s: ClassVar[tuple[float, ...]] = LOOKS_S

    def __init__(self, bootstrap: str, patience_ms: int) -> None:
        self._bootstrap, self._patience_ms = bootstrap, patience_ms
        self._consumer: Any = None
        self._at: tuple[str, int, int] | None = None  # topic, partition, next offset

    async def read(
        self, topic: str, partition: int, first: int, before: int
    ) -> tuple[ConsumerRecord, ...]:
        """As `LogReader.read`."""
        where = f"{topic}/{partition}"
        records = await self._asked(where, topic, partition, first)
        for pause_s in self.pauses_s:
            if int(records[0].offset) == first:
                break
            await asyncio.sleep(pause_s)
            self._at = None  # else what lies behind would follow
            records = await self._asked(where, topic, partition, first)
        if int(records[0].offset) != first:
            lost = NotHeldError(
                where,
                required=f"the record at offset {first}",
                got=f"offset {records[0].offset}",
                do="the log has lost records: rebuild the view from the archive",
            )
            lost.next_offset = int(records[0].offset)
            raise lost
        return tuple(
            record
            for offset, record in enumerate(records, first)
            if int(record.offset) == offset < before
        )

    async def _asked(
        self, where: str, topic: str, partition: int, first: int
    ) -> list[ConsumerRecord]:
        """What one look brings, at least one record. Raises as `read`."""
        try:
            return await asyncio.wait_for(
                self._fetch(topic, partition, first), self._patience_ms / 1000
            )
        except OffsetOutOfRangeError:
            raise NotHeldError(
                where,
                required=f"the record at offset {first}",
                got="a log that does not hold it any more",
                do="rebuild the view from the archive: `encore rebuild`",
            ) from None
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            raise StreamError(
                where,
                required=f"the record at offset {first} within {self._patience_ms} ms",
                got=f"{type(error).__name__}: {error}",
                do="check that the broker runs and still holds this log",
            ) from error

    async def close(self) -> None:
        """As `LogReader.close`."""
        consumer, self._consumer, self._at = self._consumer, None, None
        if consumer is not None:
            with contextlib.suppress(KafkaError, OSError):
                await consumer.stop()

    async def _fetch(self, topic: str, partition: int, first: int) -> list[ConsumerRecord]:
        place = TopicPartition(topic, partition)
        consumer = await self._connected()
        if self._at != (topic, partition, first):
            consumer.assign([place])
            consumer.seek(place, first)
        records: list[ConsumerRecord] = []
        while not records:
            found = await consumer.getmany(place, timeout_ms=POLL_MS, max_records=READ_RECORDS)
            records = found.get(place, [])
        self._at = topic, partition, int(records[-1].offset) + 1
        return records

    async def _connected(self) -> Any:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self._bootstrap,
                enable_auto_commit=False,
                auto_offset_reset="none",
                max_partition_fetch_bytes=FETCH_BYTES,
                fetch_max_wait_ms=10,
            )
            await consumer.start()
            self._consumer = consumer
        return self._consumer
