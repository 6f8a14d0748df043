"""What lies in a Redis or Valkey server as a whole, for house-keeping: walk it, weigh it, drop it.

Nobody who serves or folds does this. A walk goes page by page with a pause after each, so that it
takes a bounded share of the server's one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

from store import wire
from store.redis_store import RedisRowStore
from store.wire import StoreConfig

PAGE_KEYS: Final = 500
#: A walk at this pace takes a few hundredths of the server's time.
KEYS_PER_S: Final = 20_000


class RedisKeySpace(RedisRowStore):
    """A row store whose keys can be walked. keys_per_s: the most that a walk looks at."""

    def __init__(
        self,
        config: StoreConfig | str,
        keys_per_s: int = KEYS_PER_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(config)
        self._keys_per_s, self._sleep = keys_per_s, sleep

    def pages(self, pattern: str) -> Iterator[list[str]]:
        """All keys that match a glob, about PAGE_KEYS looked at for each list, which may be empty.

        A key that is there from the first page to the last is named, once or more often; one that
        comes or goes meanwhile may be. Raises StoreError.
        """
        cursor = "0"
        while True:
            command = ("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE_KEYS)
            at, keys = cast(tuple[bytes, list[bytes]], self._ask(command, "scan"))
            yield [key.decode(errors="replace") for key in keys]
            cursor = at.decode()
            if cursor == "0":
                return
            self._sleep(PAGE_KEYS / self._keys_per_s)

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Bytes of the server's memory that each key takes, its name included; 0: not there."""
        replies = self._round_trip([("MEMORY", "USAGE", key) for key in keys], "sizes")
        where = f"{self._config.place} sizes"
        return [wire.integer(wire.one(reply, where) or 0, where) for reply in replies]

    def unlink(self, keys: Sequence[str]) -> int:
        """Remove keys; the server frees them beside its work. Returns how many were there."""
        if not keys:
            return 0
        where = f"{self._config.place} unlink"
        return wire.integer(self._ask(("UNLINK", *keys), "unlink"), where)
