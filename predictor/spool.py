"""The rank log's way to disk: a bounded queue, one writer thread, group commit.

Segments `<sequence>.spool` hold frames (`schemas.spool`). What is queued while a batch is being
written becomes the next batch: one write and one fsync each. A record is *acked* once its batch
is fsynced; after a crash every acked record is in the spool, and what was queued is lost. A new
process cuts the torn tail off the last segment and goes on in a new one; it never appends to an
old one.

A full queue either drops the record and counts it, or refuses the request before it is served. A
disk that fails is tried again with the same batch in a new segment, while the queue fills; such a
batch may be in two segments, and readers tell duplicates by request id. A disk that is full is
tried again in one empty segment, however long it stays full.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Generic, TypeVar

from schemas.errors import LocalError, RecordError
from schemas.spool import SEGMENT_SUFFIX, frame, read_frames, segment_name
from store.durable import sync_directory

log: Final = logging.getLogger(__name__)
LOCK_NAME: Final = "LOCK"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SpoolConfig:
    """queue_records: how many records may wait. refuse: a full queue refuses requests instead of
    dropping records. segment_bytes: a segment that reached this size is finished. batch_records:
    most records of one fsync. retry_s: pause before a failed batch is tried again."""

    directory: Path
    queue_records: int = 4096
    refuse: bool = False
    segment_bytes: int = 64 << 20
    batch_records: int = 256
    retry_s: float = 0.5


@dataclass(slots=True)
class SpoolCounts:
    """logged: acked records. dropped: no room for them. failed: could not be encoded. faults:
    attempts at a batch that the disk refused. cut_bytes: torn tail removed at the start."""

    logged: int = 0
    dropped: int = 0
    failed: int = 0
    faults: int = 0
    cut_bytes: int = 0


class SpoolWriter(Generic[T]):
    """Takes records of one process. Raises LocalError where another one holds the directory."""

    def __init__(self, config: SpoolConfig, encode: Callable[[T], bytes]) -> None:
        self.config = config
        self.counts = SpoolCounts()
        self._encode = encode
        self._reserved = 0
        self._queue: deque[T] = deque()
        self._changed = threading.Condition()
        self._closing = False
        config.directory.mkdir(parents=True, exist_ok=True)
        self._lock_file = _lock(config.directory)
        self.counts.cut_bytes = _recover(config.directory)
        self._segment = _Segments(config.directory, config.segment_bytes)
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    # --- callers ----------------------------------------------------------------------------

    def reserve(self) -> bool:
        """Keep room for one record; False, and counted as dropped, where there is none.

        Each True is followed by exactly one `put` or `release`.
        """
        with self._changed:
            if self._closing or self._reserved >= self.config.queue_records:
                self.counts.dropped += not self.config.refuse
                return False
            self._reserved += 1
            return True

    def put(self, record: T) -> None:
        """Queue a record in its reserved room; never blocks on the disk."""
        with self._changed:
            self._queue.append(record)
            self._changed.notify_all()

    def release(self) -> None:
        """Give reserved room back."""
        with self._changed:
            self._reserved -= 1
            self._changed.notify_all()

    def pending(self) -> int:
        """Records reserved or queued that are not acked yet."""
        return self._reserved

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything reserved before is acked; False on timeout. Blocks."""
        with self._changed:
            return self._changed.wait_for(lambda: self._reserved == 0, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is queued, then stop. What the disk does not take by then is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error(
                "spool: the disk took no batch for %s s; %d records lost", timeout_s, self._reserved
            )
        self._segment.close()
        self._lock_file.close()

    # --- the writer thread ------------------------------------------------------------------

    def _run(self) -> None:
        while batch := self._next_batch():
            frames = self._frames(batch)
            written = not frames or self._write(b"".join(frames))
            with self._changed:
                self._reserved -= len(batch)
                if written:
                    self.counts.logged += len(frames)
                else:
                    self.counts.dropped += len(frames)
                self._changed.notify_all()

    def _next_batch(self) -> list[T]:
        """The next records; empty once the writer is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            count = min(len(self._queue), self.config.batch_records)
            return [self._queue.popleft() for _ in range(count)]

    def _frames(self, batch: list[T]) -> list[bytes]:
        frames: list[bytes] = []
        for record in batch:
            try:
                frames.append(frame(self._encode(record)))
            except Exception:  # whatever it is: without this thread nothing more would be logged
                self.counts.failed += 1
                log.exception("spool: a record could not be encoded and is not logged")
        return frames

    def _write(self, data: bytes) -> bool:
        """Write and fsync, again and again until it succeeds; False where closing ends that."""
        told = ""
        while True:
            try:
                self._segment.append(data)
            except OSError as error:
                self.counts.faults += 1
                if str(error) != told:
                    log.error("spool: %s; trying again every %g s", error, self.config.retry_s)
                told = str(error)
                self._segment.abandon(error)
            else:
                if told:
                    log.info("spool: the disk takes records again")
                return True
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, self.config.retry_s):
                    return self._last_try(data)

    def _last_try(self, data: bytes) -> bool:
        try:
            self._segment.append(data)
        except OSError as error:
            log.error("spool: %s; closing, the batch is lost", error)
            return False
        return True


class _Segments:
    """The growing segment of a directory. Used by one thread."""

    def __init__(self, directory: Path, segment_bytes: int) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._next = 1 + max((_sequence(path) for path in _segments(directory)), default=-1)
        self._file: int | None = None
        self._listed = False  # its directory entry is on disk
        self._size = 0

    def append(self, data: bytes) -> None:
        """Append and fsync. Raises OSError; the segment must then be abandoned."""
        if self._file is None or self._size >= self._segment_bytes:
            self._open_next()
        assert self._file is not None
        if not self._listed:
            sync_directory(self._directory)
            self._listed = True
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fdatasync(self._file)
        self._size += len(data)

    def abandon(self, error: OSError) -> None:
        """Cut off what a failed append left, and start a new segment next time.

        A failed fsync leaves no way to know what reached the disk, so the file is not used again.
        Where there was no room and nothing is in it, it is: the same batch comes again, and no
        try leaves another file.
        """
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            if error.errno in _NO_ROOM and self._size == 0:
                return
        self.close()

    def close(self) -> None:
        """Close the growing segment; the next append opens a new one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open_next(self) -> None:
        self.close()
        path = self._directory / segment_name(self._next)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._next += 1
        self._size, self._listed = 0, False


def _segments(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob(f"*{SEGMENT_SUFFIX}") if path.stem.isdigit())


def _sequence(path: Path) -> int:
    return int(path.stem)


def _recover(directory: Path) -> int:
    """Cut the last segment behind its last whole frame; what is cut is kept beside it as `.torn`.

    Returns the bytes cut. Earlier segments were finished by a process that went on.
    """
    segments = _segments(directory)
    if not segments:
        return 0
    last = segments[-1]
    data, good = last.read_bytes(), 0
    with contextlib.suppress(RecordError):
        while True:
            payloads, consumed = read_frames(data[good:], str(last))
            good += consumed
            if not payloads:
                break
    if good == len(data):
        return 0
    last.with_suffix(".torn").write_bytes(data[good:])
    with last.open("r+b") as file:
        file.truncate(good)
        os.fsync(file.fileno())
    log.warning("spool: cut a torn tail of %d bytes off %s", len(data) - good, last.name)
    return len(data) - good


def _lock(directory: Path) -> IO[bytes]:
    """The directory's lock, held until the file is closed. Raises LocalError."""
    file = (directory / LOCK_NAME).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise LocalError(
            f"spool {directory}",
            required="a directory of its own",
            got="one that another process writes",
            do="give each serving process its own spool directory",
        ) from None
    return file
