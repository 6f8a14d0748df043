"""Where partitions end: the high watermark of a fetch.

A broker's ListOffsets may lag behind its log or be wrong (the embedded one's is); a fetch is what a
consumer will be given, and each reply to one says where the partition ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.errors import StreamError

POLL_S: Final = 0.01
FETCH_WAIT_MS: Final = 10
ANSWER_MS: Final = 30_000

#: A partition of a topic: (topic, number).
Partition = tuple[str, int]


async def read_ends(
    bootstrap: str, starts: Mapping[Partition, int], timeout_ms: int = ANSWER_MS
) -> dict[Partition, int]:
    """The offset after the last record of each partition, of topics that exist.

    starts: where to fetch; a place inside the log or at its end costs least, any other works.
    Raises StreamError where the broker does not say so in time.
    """
    if not starts:
        return {}
    wanted = {place: TopicPartition(*place) for place in starts}
    consumer: Any = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=1,
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            await consumer.start()
            consumer.assign(list(wanted.values()))
            for place, tp in wanted.items():
                consumer.seek(tp, starts[place])
            while any(consumer.highwater(tp) is None for tp in wanted.values()):
                await consumer.getmany(timeout_ms=0, max_records=1)
                await asyncio.sleep(POLL_S)
            return {place: int(consumer.highwater(tp)) for place, tp in wanted.items()}
    except (KafkaError, OSError, TimeoutError) as error:
        raise StreamError(
            f"broker {bootstrap}",
            required=f"the ends of {len(starts)} partitions within {timeout_ms} ms",
            got=f"{type(error).__name__}: {error}",
            do="check that the broker runs and still holds these topics",
        ) from error
    finally:
        await consumer.stop()


async def read_starts(
    bootstrap: str, places: Iterable[Partition], timeout_ms: int = ANSWER_MS
) -> dict[Partition, int]:
    """The first offset that each partition still holds, by the broker's list of offsets.

    Raises StreamError where the broker does not say so in time.
    """
    wanted = {TopicPartition(*place): place for place in places}
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            await consumer.start()
            found = await consumer.beginning_offsets(list(wanted))
            return {wanted[tp]: int(at) for tp, at in found.items()}
    except (KafkaError, OSError, TimeoutError) as error:
        raise StreamError(
            f"broker {bootstrap}",
            required=f"the starts of {len(wanted)} partitions within {timeout_ms} ms",
            got=f"{type(error).__name__}: {error}",
            do="check that the broker runs and still holds these topics",
        ) from error
    finally:
        await consumer.stop()
