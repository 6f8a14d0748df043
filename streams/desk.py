"""Where somebody sits who looks after one topic's dead letters: connections, and what is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

from schemas.errors import StreamError
from schemas.names import dead_letter_topic, redriven_keys
from store.base import AsyncRowStore
from streams.admin import Admin, TopicFacts
from streams.clients import KafkaProducer, close_producer
from streams.config import StreamConfig
from streams.dead_letters import (
    PARTITION,
    Letter,
    Redriven,
    Redriver,
    parse_record,
    read_letters,
    refusal,
    send_all,
)
from streams.ends import read_ends
from streams.log_reader import KafkaLogReader, first_held
from streams.producer import MAX_MADE_BYTES, producer_settings


class Desk:
    """For one topic's letters. Use as an async context manager."""

    def __init__(
        self, config: StreamConfig, store: AsyncRowStore, topic: str, clock: Callable[[], int]
    ) -> None:
        """clock: ms since 1970."""
        self._config, self._store, self._topic, self._clock = config, store, topic, clock
        self._reader = KafkaLogReader(config.bootstrap, config.patience_ms)
        self._facts: dict[str, TopicFacts] = {}
        self._first = self._end = 0

    async def __aenter__(self) -> Self:
        self._facts = await asyncio.to_thread(self._ask)
        dead = dead_letter_topic(self._topic)
        if dead in self._facts:
            ends = await read_ends(self._config.bootstrap, {(dead, PARTITION): 0})
            self._end = ends[dead, PARTITION]
            self._first = await first_held(self._reader, dead, PARTITION, self._end)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.close()

    async def last(self, count: int) -> list[Letter]:
        """The newest letters that the topic holds, oldest first. Raises StreamError."""
        first = max(self._first, self._end - count)
        return await read_letters(self._reader, self._topic, first, self._end)

    async def put_back(self) -> frozenset[int]:
        """The letters that were put back. Raises StreamError, StoreError."""
        dead = self._facts.get(dead_letter_topic(self._topic))
        if dead is None:
            return frozenset()
        key, _ = redriven_keys(dead.name, dead.topic_id)
        return frozenset(parse_record(await self._store.get_text(key), key).done)

    async def some(self, offsets: Sequence[int]) -> list[Letter]:
        """These letters, in order. Raises StreamError where one is not there."""
        for offset in offsets:
            if not self._first <= offset < self._end:
                held = self._first < self._end
                raise StreamError(
                    dead_letter_topic(self._topic),
                    required=f"a letter from {self._first} to {self._end - 1}"
                    if held
                    else "a letter",
                    got=str(offset) if held else "an empty topic",
                    do="see `encore stream dead list`",
                )
        found = [
            await read_letters(self._reader, self._topic, offset, offset + 1)
            for offset in sorted(set(offsets))
        ]
        return [letter for letters in found for letter in letters]

    async def redrive(self, offsets: Sequence[int] | None) -> Redriven:
        """Put these back, or all; see `streams.dead_letters`. Raises StreamError."""
        if self._topic == self._config.item_topic:
            raise StreamError(
                f"redrive into {self._topic}",
                required="a topic that applications write to",
                got="the re-keyed one, whose messages cover ranges of their source",
                do="what was refused there is in the topic it came from: rebuild the item views",
            )
        letters = await (self.last(self._end) if offsets is None else self.some(offsets))
        if not letters:
            return Redriven((), (), {})
        target = self._facts[self._topic]
        settings = producer_settings(self._config.bootstrap) | {"max_request_size": MAX_MADE_BYTES}
        producer: Any = await asyncio.to_thread(partial(KafkaProducer, **settings))
        try:
            redriver = Redriver(
                self._config.bootstrap,
                self._store,
                self._reader,
                self._facts[dead_letter_topic(self._topic)],
                target,
                send_all(producer, self._topic),
                self._clock,
            )
            actions = self._topic == self._config.topic
            return await redriver.run(letters, lambda each: refusal(each, target, actions))
        finally:
            await asyncio.to_thread(close_producer, producer)

    def _ask(self) -> dict[str, TopicFacts]:
        with Admin(self._config.bootstrap) as admin:
            found = [admin.describe(name) for name in (self._topic, dead_letter_topic(self._topic))]
        return {facts.name: facts for facts in found if facts is not None and facts.partitions}
