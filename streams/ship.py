"""The shipper: rank-log records from the spool to their topic.

    <spool_dir>/<sequence>.spool   segments of frames (`schemas.spool`); the newest still grows
    <spool_dir>/SHIPPED            "<sequence> <byte>": all before is confirmed by the broker
    <spool_dir>/worker-<n>/        the same, of each of several serving processes

A batch of frames is sent keyed by user id, acks=all, and confirmed; then the position is replaced
durably; then a finished segment that lies before it is deleted. So a crash sends the last batch
again and loses nothing: records arrive at least once, and readers tell a repetition by its request
id (`audit.join` keeps the record of the lowest offset).

A payload that is no rank record goes to the dead-letter topic. What is damaged within a segment
(its checksum says so) is logged and skipped to the next segment, since nobody can say where the
next frame begins; the segment is kept as `.damaged`.
"""

from __future__ import annotations

import logging
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from schemas.errors import EncoreError, RecordError, StreamError
from schemas.ids import partition_of
from schemas.names import HEADER_CODE, HEADER_REASON, HEADER_SOURCE, dead_letter_topic
from schemas.ranklog import decode_record
from schemas.spool import SEGMENT_SUFFIX, WORKER_PREFIX, read_frames, segment_name
from store.durable import replacing
from store.ending import heard
from streams.clients import KafkaError, KafkaProducer, close_producer, require_broker
from streams.config import StreamConfig
from streams.producer import CONNECT_TIMEOUT_MS, SEND_TIMEOUT_S, producer_settings

log = logging.getLogger("encore.streams")

POSITION_NAME: Final = "SHIPPED"
READ_BYTES: Final = 4 << 20
LARGEST_READ_BYTES: Final = 1 << 29
IDLE_S: Final = 0.05
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


@dataclass(frozen=True, slots=True, order=True)
class SpoolPosition:
    """A byte of a segment."""

    sequence: int
    byte: int


def worker_directories(spool: Path) -> list[Path]:
    """The directories below a spool of serving processes that run or ran, sorted."""
    return sorted(path for path in spool.glob(f"{WORKER_PREFIX}*") if path.is_dir())


def shipped_to(directory: Path) -> SpoolPosition:
    """The position up to which a spool directory is in Kafka. Raises StreamError."""
    path = directory / POSITION_NAME
    if not path.exists():
        return SpoolPosition(0, 0)
    try:
        sequence, byte = (int(part) for part in path.read_text().split())
    except ValueError:
        raise StreamError(
            str(path),
            required="two numbers, segment and byte",
            got=repr(path.read_text()[:40]),
            do="remove it: everything in the spool is then sent again",
        ) from None
    return SpoolPosition(sequence, byte)


def run_shipper(config: StreamConfig) -> int:
    """Ship until a signal, then what is spooled by then. Blocking. Returns the exit code.

    A broker that does not answer is tried for `patience_ms`, then the process ends with code 1.
    """
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, on_signal) for number in heard()}
    try:
        with Shipper(config) as shipper:
            shipper.run(stop)
    except EncoreError as error:
        log.error("shipper: ended: %s", error, extra={"error": error.parts()})
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


class Shipper:
    """Ships a spool directory, and those of serving processes below it. One process at a time."""

    def __init__(
        self, config: StreamConfig, directory: Path | None = None, producer: Any = None
    ) -> None:
        """directory, producer: of a serving process below; the spool and one of its own unless
        given. Raises StreamError where the broker does not answer."""
        self._config, self._directory = config, directory or config.spool
        self._below: dict[Path, Shipper] = {}
        self._directory.mkdir(parents=True, exist_ok=True)
        self._position = shipped_to(self._directory)
        self._remove_shipped()
        self.shipped = 0
        if producer is not None:
            self._producer: Any = producer
            return
        require_broker(config.bootstrap, CONNECT_TIMEOUT_MS)
        try:
            self._producer = KafkaProducer(**producer_settings(config.bootstrap))
        except (KafkaError, OSError) as error:
            raise self._failed(error) from error

    def __enter__(self) -> Shipper:
        return self

    def __exit__(self, *_: object) -> None:
        close_producer(self._producer)

    def run(self, stop: threading.Event) -> None:
        """Ship what there is, again and again; after `stop` once more, then return."""
        waited_s, pause_s = 0.0, FIRST_PAUSE_S
        while True:
            last_round = stop.is_set()
            try:
                moved = self.ship_available()
            except StreamError as error:
                if last_round or waited_s * 1000 >= self._config.patience_ms:
                    raise
                log.warning("shipper: again in %.1f s: %s", pause_s, error)
                stop.wait(pause_s)
                waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            waited_s, pause_s = 0.0, FIRST_PAUSE_S
            if last_round:
                log.info("shipper: %d records shipped", self.shipped)
                return
            if not moved:
                stop.wait(IDLE_S)

    def ship_available(self) -> int:
        """Ship every whole frame there is now. Returns how many records. Raises StreamError."""
        total, more = 0, True
        while more:
            sent, more = self._step()
            total += sent
        for directory in worker_directories(self._directory):
            if directory not in self._below:
                self._below[directory] = Shipper(self._config, directory, self._producer)
            sent = self._below[directory].ship_available()
            self.shipped += sent
            total += sent
        return total

    # --- one step ---------------------------------------------------------------------------

    def _step(self) -> tuple[int, bool]:
        """Ship one read's frames, or go on to the next segment. Returns (sent, maybe more)."""
        sequences = self._sequences()
        newer = [sequence for sequence in sequences if sequence >= self._position.sequence]
        if not newer:
            self._check_numbering(sequences)
            return 0, False
        if newer[0] > self._position.sequence:
            self._move(SpoolPosition(newer[0], 0))
        finished = len(newer) > 1  # looked at before reading: what is read then is all of it
        path = self._directory / segment_name(self._position.sequence)
        try:
            payloads, consumed = self._read(path)
        except RecordError as error:
            return self._damaged(path, error, finished)
        if payloads:
            self._send(payloads, path)
            self._move(SpoolPosition(self._position.sequence, self._position.byte + consumed))
            return len(payloads), True
        if not finished:
            return 0, False
        if path.stat().st_size > self._position.byte:
            torn = RecordError(str(path), required="whole frames", got="a torn tail")
            return self._damaged(path, torn, finished)
        self._move(SpoolPosition(newer[1], 0))
        path.unlink()
        return 0, True

    def _check_numbering(self, sequences: list[int]) -> None:
        """Raises StreamError where segments are numbered below the position: never shipped."""
        if sequences:
            raise StreamError(
                str(self._directory / POSITION_NAME),
                required=f"a segment {self._position.sequence} or newer in the spool",
                got=f"segments up to {sequences[-1]}",
                do="if the spool was emptied by hand, remove this file",
            )

    def _read(self, path: Path) -> tuple[list[bytes], int]:
        """Whole frames from the position on; a frame larger than a read makes the read larger."""
        size = READ_BYTES
        with path.open("rb") as file:
            while True:
                file.seek(self._position.byte)
                data = file.read(size)
                payloads, consumed = read_frames(data, str(path))
                if payloads or len(data) < size or size >= LARGEST_READ_BYTES:
                    return payloads, consumed
                size *= 2

    def _damaged(self, path: Path, error: RecordError, finished: bool) -> tuple[int, bool]:
        """Leave a damaged segment behind, once its writer is done with it."""
        if not finished:
            return 0, False
        kept = path.with_suffix(".damaged")
        log.error("shipper: %s; the rest of it is kept as %s", error, kept)
        following = min(s for s in self._sequences() if s > self._position.sequence)
        self._move(SpoolPosition(following, 0))
        path.rename(kept)
        return 0, True

    # --- sending ----------------------------------------------------------------------------

    def _send(self, payloads: list[bytes], path: Path) -> None:
        """Send all and wait for all. Raises StreamError; some may have arrived then."""
        config, waiting = self._config, []
        try:
            for payload in payloads:
                try:
                    user = decode_record(payload, str(path)).user_id
                except RecordError as error:
                    waiting.append(self._bury(payload, error, path))
                    continue
                waiting.append(
                    self._producer.send(
                        config.rank_topic,
                        value=payload,
                        key=b"%d" % user,
                        partition=partition_of(user, config.partitions),
                    )
                )
            for future in waiting:
                future.get(SEND_TIMEOUT_S)
        except KafkaError as error:
            raise self._failed(error) from error
        self.shipped += len(payloads)

    def _bury(self, payload: bytes, error: RecordError, path: Path) -> Any:
        log.warning("dead letter: %s", error)
        headers = {
            HEADER_REASON: str(error).encode(),
            HEADER_CODE: error.code.encode(),
            HEADER_SOURCE: str(path.name).encode(),
        }
        topic = dead_letter_topic(self._config.rank_topic)
        return self._producer.send(topic, value=payload, headers=list(headers.items()))

    def _failed(self, error: Exception) -> StreamError:
        return StreamError(
            f"topic {self._config.rank_topic}",
            required="confirmed rank records",
            got=f"{type(error).__name__}: {error}",
            do="check the broker; the spool keeps them",
        )

    # --- position ---------------------------------------------------------------------------

    def _sequences(self) -> list[int]:
        names = self._directory.glob(f"*{SEGMENT_SUFFIX}")
        return sorted(int(path.stem) for path in names if path.stem.isdigit())

    def _remove_shipped(self) -> None:
        """Delete finished segments that a crash left behind the position."""
        sequences = self._sequences()
        for sequence in sequences[:-1]:
            if sequence < self._position.sequence:
                (self._directory / segment_name(sequence)).unlink()

    def _move(self, position: SpoolPosition) -> None:
        """Replace the position durably."""
        path = self._directory / POSITION_NAME
        with replacing(path, path.with_suffix(".new")) as file:
            file.write(b"%d %d\n" % (position.sequence, position.byte))
        self._position = position
