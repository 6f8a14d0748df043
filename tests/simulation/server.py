"""A row store whose every call is an operation on its way, and which can die and come back older.

The rows are a `MemoryRowStore`. Every change makes an image; a crash goes back to any image from
the last durable one on, as a server does whose append-only file is cut at some byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from schemas.errors import StoreError, StoreTimeout
from schemas.stored import RowKeys, StoredRows
from store.base import Progress, ServerFacts, Write, check_history
from store.memory import Image, MemoryRowStore, life_of
from tests.simulation.loop import SimulationError, VirtualLoop


class Witness(Protocol):
    """Is told of everything that changes, and can go back as the store does."""

    def row_landed(self, before: bytes | None, write: Write) -> None: ...

    def text_landed(self, key: str, text: str) -> None: ...

    def epoch_landed(self, topic: str, topic_id: str, epoch: int) -> None: ...

    def progress_landed(self, topic: str, group: str, marks: Mapping[int, Progress]) -> None: ...

    def image(self) -> Any: ...

    def restore(self, image: Any) -> None: ...


@dataclass(frozen=True)
class Moment:
    """The store and what its witness knew, after one change."""

    rows: Image
    known: Any  # None is all forgotten


class Server:
    """The store itself. moments: from the last durable one on."""

    def __init__(self, rows: MemoryRowStore, witness: Witness) -> None:
        self.rows, self.witness = rows, witness
        self.losses = 0  # how often it restarted, was wiped or went back
        self.moments = [self._moment()]

    @property
    def durable(self) -> Moment:
        """What a crash leaves at least."""
        return self.moments[0]

    def _moment(self) -> Moment:
        return Moment(self.rows.image(), self.witness.image())

    def changed(self) -> None:
        """Something was written."""
        self.moments.append(self._moment())

    def sync(self, count: int) -> None:
        """That many of the oldest changes are on disk now."""
        del self.moments[: min(count, len(self.moments) - 1)]

    def crash(self, lost: int) -> int:
        """Lose that many of the newest changes, of those that are not on disk."""
        self.losses += 1
        lost = min(lost, len(self.moments) - 1)
        del self.moments[len(self.moments) - lost :]
        self.rows.restore(self.moments[-1].rows)
        self.witness.restore(self.moments[-1].known)
        return lost

    def wipe(self) -> None:
        """Everything is gone, as after FLUSHALL or a new disk."""
        self.losses += 1
        self.rows.restore(Image())
        self.witness.restore(None)
        self.moments = [self._moment()]

    def flush(self) -> None:
        """Everything is gone, and nobody is cut off: FLUSHALL."""
        self.losses += 1
        self.rows.flush()
        self.witness.restore(None)
        self.moments = [self._moment()]

    def go_back(self, moment: Moment) -> None:
        """Keys are put back as they were, the history's marker among them; nobody is cut off."""
        self.losses += 1
        self.rows.go_back(moment.rows)
        self.witness.restore(moment.known)
        self.moments = [self._moment()]

    def expire(self, key: str) -> None:
        """A row that may expire does so."""
        del self.rows._data.values[key], self.rows._data.expires_ms[key]

    # --- what calls do ------------------------------------------------------------------------

    def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        landed = []
        for write in writes:
            before = self.rows.read([write.key])[0]
            landed += self.rows.compare_and_set([write])
            if landed[-1]:
                self.witness.row_landed(before, write)
                self.changed()
        return landed

    def compare_and_set_text(self, key: str, version_key: str, version: int, text: str) -> bool:
        landed = self.rows.compare_and_set_text(key, version_key, version, text)
        if landed:
            self.witness.text_landed(key, text)
            self.changed()
        return landed

    def put_text(self, key: str, text: str) -> None:
        self.rows.put_text(key, text)
        self.changed()

    def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        before = self.rows.get_progress(topic, group)
        self.rows.put_progress(topic, group, progress)
        after = self.rows.get_progress(topic, group)
        for partition, mark in before.items():
            if after[partition][:2] < mark[:2]:
                raise SimulationError("mark", f"{group}/{partition} {mark} became {after}")
        if after != before:
            self.witness.progress_landed(topic, group, after)
            self.changed()

    def epoch_of(self, topic: str, topic_id: str) -> int:
        epoch = self.rows.epoch_of(topic, topic_id)
        self.witness.epoch_landed(topic, topic_id, epoch)
        self.changed()
        return epoch


class VirtualStore:
    """`store.base.AsyncRowStore` of one process."""

    def __init__(self, loop: VirtualLoop, server: Server) -> None:
        self._loop, self._server = loop, server
        self._history = ""

    async def _call(
        self, label: str, run: Callable[[], Any], part: Callable[[], Any] | None = None
    ) -> Any:
        def fault(how: str) -> StoreError:
            if how == "refused":
                return StoreError("virtual store", required="an answer", got="a broken connection")
            return StoreTimeout("virtual store", required="an answer in time", got="none")

        def checked(what: Callable[[], Any]) -> Any:
            check_history(life_of(self._history), life_of(self._server.rows.history))
            return what()

        half = None if part is None else partial(checked, part)
        return await self._loop.ask(f"store {label}", partial(checked, run), fault, half)

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `AsyncRowStore.read`."""
        keys = list(keys)
        return list(await self._call("read", lambda: self._server.rows.read(keys)))

    async def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        """As `AsyncRowStore.read_rows`."""
        return StoredRows.of(await self.read([name for each in keys for name in each.names()]))

    async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        """As `AsyncRowStore.compare_and_set`."""
        writes = list(writes)
        half = writes[: len(writes) // 2]
        return list(
            await self._call(
                f"write {', '.join(write.key for write in writes)}",
                lambda: self._server.compare_and_set(writes),
                lambda: self._server.compare_and_set(half),
            )
        )

    async def get_text(self, key: str) -> str | None:
        """As `AsyncRowStore.get_text`."""
        text: str | None = await self._call(f"get {key}", lambda: self._server.rows.get_text(key))
        return text

    async def put_text(self, key: str, text: str) -> None:
        """As `AsyncRowStore.put_text`."""
        await self._call(f"put {key}", lambda: self._server.put_text(key, text))

    async def compare_and_set_text(
        self, key: str, version_key: str, expected_version: int, text: str
    ) -> bool:
        """As `AsyncRowStore.compare_and_set_text`."""
        place = key, version_key, expected_version, text
        return bool(
            await self._call(f"set {key}", lambda: self._server.compare_and_set_text(*place))
        )

    async def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        """As `AsyncRowStore.put_progress`."""
        numbers = dict(progress)
        await self._call(f"mark {group}", lambda: self._server.put_progress(topic, group, numbers))

    async def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        """As `AsyncRowStore.get_progress`."""
        return dict(
            await self._call(f"marks {group}", lambda: self._server.rows.get_progress(topic, group))
        )

    async def epoch_of(self, topic: str, topic_id: str) -> int:
        """As `AsyncRowStore.epoch_of`."""
        return int(
            await self._call(f"epoch {topic}", lambda: self._server.epoch_of(topic, topic_id))
        )

    async def begin_history(self) -> str:
        """As `AsyncRowStore.begin_history`."""
        self._history = str(await self._call("history", lambda: self._server.rows.history))
        return self._history

    async def check_history(self) -> None:
        """As `AsyncRowStore.check_history`."""
        await self._call("history again", self._require_history)

    async def confirm(self) -> None:
        """As `AsyncRowStore.confirm`."""

        def confirm() -> None:
            self._require_history()
            self._server.sync(len(self._server.moments))

        await self._call("confirm", confirm)

    def _require_history(self) -> None:
        check_history(self._history, self._server.rows.history)

    async def facts(self) -> ServerFacts:
        """As `AsyncRowStore.facts`."""
        return self._server.rows.facts()

    async def check_policy(self) -> None:
        """As `AsyncRowStore.check_policy`."""

    async def ping(self) -> None:
        """As `AsyncRowStore.ping`."""

    async def close(self) -> None:
        """As `AsyncRowStore.close`."""
