"""One log of one topic, as a stream process sees it: its id, its epoch, and whether it still is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from schemas.errors import StreamError
from schemas.names import partitions_keys, root_topic
from store.base import AsyncRowStore
from streams.admin import TopicFacts
from streams.patience import patiently
from streams.servers import TopicAdmin

log = logging.getLogger("encore.streams")

WATCH_S: Final = 2.0


async def check_partitions(store: AsyncRowStore, facts: TopicFacts) -> None:
    """Record the count at its first use. Raises StreamError where it was another then: users have
    changed their partitions, so fences and positions mean nothing any more."""
    key, version_key = partitions_keys(facts.name)
    held = await store.get_text(key)
    if held is None:
        await store.compare_and_set_text(key, version_key, 0, str(facts.partitions))
        held = await store.get_text(key)
    if held != str(facts.partitions):
        raise StreamError(
            f"topic {facts.name}",
            required=f"the {held} partitions it had when it was first read",
            got=str(facts.partitions),
            do="move the actions to a new topic: `encore topics grow`; this one was altered, and"
            " what was sent since may be in wrong partitions",
        )


class Source:
    """A topic whose id must not change while a process reads it."""

    def __init__(
        self,
        admin: TopicAdmin,
        facts: TopicFacts,
        epoch: int,
        patience_ms: int,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admin, self._patience_ms, self._clock_s = admin, patience_ms, clock_s
        self._next_watch_s = 0.0
        self.topic, self.topic_id, self.epoch = facts.name, facts.topic_id, epoch

    @classmethod
    async def open(
        cls,
        admin: TopicAdmin,
        facts: TopicFacts,
        store: AsyncRowStore,
        patience_ms: int,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> Source:
        """Ask the store for the number of this log; a new log takes the next one.

        A topic and its successors share their numbers, so what comes later has the higher one.
        Raises StreamError where the log was lost meanwhile: had another process asked for its
        successor's number first, the older log would have the higher one; and where the topic has
        another partition count than when it was first read.
        """
        await check_partitions(store, facts)
        epoch = await store.epoch_of(root_topic(facts.name), facts.topic_id)
        source = cls(admin, facts, epoch, patience_ms, clock_s)
        await source.check()
        return source

    async def check(self) -> None:
        """Raises StreamError unless the topic still has the id it had.

        Ids never come back, so records fetched before this call are of this log.
        """
        facts = await patiently(
            f"metadata of {self.topic}",
            lambda: asyncio.to_thread(self._admin.describe, self.topic),
            self._patience_ms,
            (StreamError,),
        )
        self._require_same(facts)

    async def watch(self) -> None:
        """`check` now and then while nothing comes; a broker that is away is waited for."""
        now_s = self._clock_s()
        if now_s < self._next_watch_s:
            return
        self._next_watch_s = now_s + WATCH_S
        try:
            facts = await asyncio.to_thread(self._admin.describe, self.topic)
        except StreamError as error:
            log.warning("%s", error)
            return
        self._require_same(facts)

    def _require_same(self, facts: TopicFacts | None) -> None:
        if facts is None or facts.topic_id != self.topic_id:
            raise StreamError(
                f"topic {self.topic}",
                required=f"the id {self.topic_id} it had at the start",
                got=facts.topic_id if facts else "no such topic",
                do="the broker lost its log; restart this process, it takes a new epoch",
            )
