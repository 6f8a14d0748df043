"""How a stream process is set up. The command line makes these from the settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from schemas.errors import SettingsError
from schemas.names import (
    ACTIONS_TOPIC,
    RANK_LOG_TOPIC,
    by_item_topic,
    dead_letter_topic,
    late_topic,
)
from schemas.succession import Life
from store.wire import OWN_DISK, Disks

#: Appended to the group of the worker: each kind of consumer keeps positions of its own.
ARCHIVE_GROUP_SUFFIX = ".archive"
ITEM_GROUP_SUFFIX = ".items"


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Settings of the worker, the item worker, the sink and the shipper.

    bootstrap: Kafka `host:port`, or several separated by commas. store_url: the row store.
    data_dir: holds `archive/` and the shipper's position. spool_dir: segments of the rank log.
    group: the worker's consumer group.

    partitions: of the action, the re-keyed and the rank-log topic; never changed afterwards.
    number: of the action topic among those that came one after the other (`schemas.succession`).
    rank_partitions: of the rank-log topic, where they are others; 0: as the others.
    fetch_wait_ms: how long the broker may hold an empty fetch. The embedded broker looks once
        after half of it, so it bounds the delay of an action there; a real Kafka answers at once.
    session_timeout_s: the embedded broker answers a first JoinGroup after half of it.
    batch_actions: a micro-batch takes whole messages until it has this many actions.
    patience_ms: how long a store, broker or disk that fails is retried before the process ends.
    durability: `fsynced` commits what the store's disk has confirmed; `answered` what the store has
        answered, for a store without an append-only file: a commit may then pass what a crash of
        the store leaves.
    disks: of the store or its replicas, that `fsynced` waits for.
    retention_ms: how long the topics keep their messages. Rows of views with a TTL leave the store
        a day after the longer of both without a write; 0: nobody says, all rows stay.
    stand_still_ms: a process whose positions do not move for this long ends, if there is something
        to read; more than twice patience_ms.
    core: of the machine, on which the process runs; None: on any.
    roll_rows, roll_ms: a Parquet file is closed at this many rows or this age.
    """

    bootstrap: str
    store_url: str
    data_dir: Path
    spool_dir: Path | None = None
    group: str = "encore"
    topic: str = ACTIONS_TOPIC
    partitions: int = 4
    rank_topic: str = RANK_LOG_TOPIC
    fetch_wait_ms: int = 10
    session_timeout_s: float = 6.0
    commit_interval_s: float = 1.0
    batch_actions: int = 60_000
    inbox_lists: int = 16
    patience_ms: int = 30_000
    stand_still_ms: int = 120_000
    store_timeout_ms: int = 2_000
    durability: Literal["fsynced", "answered"] = "fsynced"
    disks: Disks = OWN_DISK
    retention_ms: int = 0
    roll_rows: int = 50_000
    roll_ms: int = 10_000
    number: int = 1
    rank_partitions: int = 0
    core: int | None = None

    def __post_init__(self) -> None:
        """Raises SettingsError for what cannot work."""
        positive = ("partitions", "fetch_wait_ms", "batch_actions", "inbox_lists")
        for name in (*positive, "roll_rows", "roll_ms"):
            if getattr(self, name) < 1:
                raise SettingsError(name, required="1 or more", got=str(getattr(self, name)))
        if self.stand_still_ms <= 2 * self.patience_ms:
            raise SettingsError(
                "stand_still_ms",
                required=f"more than twice patience_ms, {self.patience_ms}",
                got=str(self.stand_still_ms),
            )
        if self.session_timeout_s <= 0 or self.commit_interval_s <= 0:
            raise SettingsError(
                "session_timeout_s, commit_interval_s",
                required="more than 0",
                got=f"{self.session_timeout_s}, {self.commit_interval_s}",
            )

    @property
    def fsynced(self) -> bool:
        """Whether what counts as stored has to be on the store's disk."""
        return self.durability == "fsynced"

    @property
    def topics(self) -> dict[str, int]:
        """Every topic the streams use, with its partition count."""
        return {
            self.topic: self.partitions,
            self.item_topic: self.partitions,
            self.rank_topic: self.rank_partitions or self.partitions,
            dead_letter_topic(self.topic): 1,
            late_topic(self.topic): 1,
            dead_letter_topic(self.item_topic): 1,
            late_topic(self.item_topic): 1,
            dead_letter_topic(self.rank_topic): 1,
        }

    def at(self, life: Life, number: int) -> StreamConfig:
        """For the topic of that number; the rank log stays as it is."""
        return replace(
            self,
            topic=life.name,
            partitions=life.partitions,
            number=number,
            rank_partitions=self.rank_partitions or self.partitions,
        )

    def members(self, group: str) -> str:
        """The group's name in the broker: those who read one topic share nothing with those who
        read the next."""
        return group if self.number == 1 else f"{group}.{self.number}"

    @property
    def item_topic(self) -> str:
        """The actions re-keyed by item."""
        return by_item_topic(self.topic)

    @property
    def item_group(self) -> str:
        """The item worker's consumer group."""
        return self.group + ITEM_GROUP_SUFFIX

    @property
    def archive_group(self) -> str:
        """The sink's consumer group, also its name in the store's progress marks."""
        return self.group + ARCHIVE_GROUP_SUFFIX

    @property
    def archive_dir(self) -> Path:
        """Where the Parquet files lie."""
        return self.data_dir / "archive"

    @property
    def spool(self) -> Path:
        """The spool directory in effect."""
        return self.spool_dir if self.spool_dir is not None else self.data_dir / "spool"
