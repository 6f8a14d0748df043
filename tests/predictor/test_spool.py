"""The spool: acked is on disk, full is counted or refused, crashes lose nothing that was acked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from predictor.spool import LOCK_NAME, SpoolConfig, SpoolWriter, _Segments
from schemas.errors import LocalError, RecordError
from schemas.spool import frame, read_frames, segment_name


def encode(text: str) -> bytes:
    return text.encode()


def put(spool: SpoolWriter[str], *records: str) -> None:
    for record in records:
        assert spool.reserve()
        spool.put(record)


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.spool"))


def spooled(directory: Path) -> list[str]:
    texts: list[str] = []
    for path in segments(directory):
        data = path.read_bytes()
        payloads, consumed = read_frames(data) if data else ([], 0)
        assert consumed == len(data)
        texts += [payload.decode() for payload in payloads]
    return texts


def test_flushed_records_are_on_disk_in_order(tmp_path: Path) -> None:
    spool = SpoolWriter(SpoolConfig(tmp_path), encode)
    records = [f"record {n}" for n in range(1000)]
    put(spool, *records)
    assert spool.flush(60)
    assert spooled(tmp_path) == records
    assert spool.counts.logged == 1000
    assert spool.pending() == 0
    spool.close()
    assert [path.name for path in segments(tmp_path)] == [segment_name(0)]


def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    spool = SpoolWriter(SpoolConfig(tmp_path), encode)
    put(spool, *map(str, range(100)))
    spool.close()
    assert len(spooled(tmp_path)) == 100
    assert not spool.reserve()


def test_segments_rotate_by_size(tmp_path: Path) -> None:
    spool = SpoolWriter(SpoolConfig(tmp_path, segment_bytes=100, batch_records=1), encode)
    put(spool, *("x" * 60 for _ in range(5)))
    spool.close()
    assert [path.name for path in segments(tmp_path)] == [segment_name(n) for n in range(3)]
    assert len(spooled(tmp_path)) == 5


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(text: str) -> bytes:
        started.set()
        assert go_on.wait(60)
        return text.encode()

    spool = SpoolWriter(SpoolConfig(tmp_path, queue_records=3), slow)
    put(spool, "a", "b", "c")
    assert started.wait(60)
    assert not spool.reserve()
    assert spool.counts.dropped == 1
    go_on.set()
    assert spool.flush(60)
    put(spool, "d")
    spool.close()
    assert spooled(tmp_path) == ["a", "b", "c", "d"]


def test_reserved_room_can_be_given_back(tmp_path: Path) -> None:
    spool = SpoolWriter(SpoolConfig(tmp_path, queue_records=1, refuse=True), encode)
    assert spool.reserve()
    assert not spool.reserve()
    assert spool.counts.dropped == 0  # refused, not dropped
    spool.release()
    put(spool, "a")
    spool.close()
    assert spooled(tmp_path) == ["a"]


def test_a_record_without_encoding_is_counted_and_the_next_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def picky(text: str) -> bytes:
        if text == "bad":
            raise RecordError("record", required="good", got="bad")
        if text == "worse":
            raise OverflowError("nobody foresaw this")
        return text.encode()

    spool = SpoolWriter(SpoolConfig(tmp_path), picky)
    put(spool, "bad", "worse", "good", "")  # an empty payload has no frame
    assert spool.flush(60)
    spool.close()
    assert spooled(tmp_path) == ["good"]
    assert (spool.counts.failed, spool.counts.logged) == (3, 1)


@pytest.mark.parametrize("tail", [b"\x05\0\0\0", frame(b"torn")[:-1], bytes(4096), b"\xff" * 99])
def test_recovery_cuts_the_torn_tail_and_keeps_the_rest(tail: bytes, tmp_path: Path) -> None:
    whole = b"".join(frame(text) for text in (b"one", b"two"))
    (tmp_path / segment_name(4)).write_bytes(whole + tail)
    spool = SpoolWriter(SpoolConfig(tmp_path), encode)
    assert spool.counts.cut_bytes == len(tail)
    put(spool, "three")
    spool.close()
    assert (tmp_path / segment_name(4)).read_bytes() == whole
    assert spooled(tmp_path) == ["one", "two", "three"]
    assert [path.name for path in segments(tmp_path)] == [segment_name(4), segment_name(5)]
    assert (tmp_path / segment_name(4)).with_suffix(".torn").read_bytes() == tail


def test_one_process_a_directory(tmp_path: Path) -> None:
    spool = SpoolWriter(SpoolConfig(tmp_path), encode)
    with pytest.raises(LocalError, match="another process"):
        SpoolWriter(SpoolConfig(tmp_path), encode)
    spool.close()
    SpoolWriter(SpoolConfig(tmp_path), encode).close()
    assert (tmp_path / LOCK_NAME).exists()


class BadDisk(_Segments):
    """Fails some appends after half of the bytes, as a full disk does."""

    def __init__(self, directory: Path, failures: int, number: int = errno.ENOSPC) -> None:
        super().__init__(directory, 1 << 20)
        self.failures, self.number = failures, number

    def append(self, data: bytes) -> None:
        if self.failures:
            self.failures -= 1
            if self._file is None:
                self._open_next()
            assert self._file is not None
            os.write(self._file, data[: len(data) // 2])
            raise OSError(self.number, os.strerror(self.number))
        super().append(data)


@pytest.mark.parametrize(("number", "files"), [(errno.ENOSPC, 2), (errno.EIO, 5)])
def test_a_failing_disk_is_tried_again_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, files: int
) -> None:
    """In a new segment each time, unless it is full: that may last for days."""
    spool = SpoolWriter(SpoolConfig(tmp_path, retry_s=0.01), encode)
    put(spool, "before")
    assert spool.flush(60)
    spool._segment.close()
    spool._segment = BadDisk(tmp_path, 3, number)
    put(spool, "one", "two")
    assert spool.flush(60)
    spool.close()
    assert spooled(tmp_path) == ["before", "one", "two"]
    assert spool.counts.faults == 3
    assert spool.counts.logged == 3
    assert len(segments(tmp_path)) == files
    assert len([line for line in caplog.messages if os.strerror(number) in line]) == 1


def test_a_disk_that_never_works_does_not_keep_the_process(tmp_path: Path) -> None:
    spool = SpoolWriter(SpoolConfig(tmp_path, retry_s=0.01), encode)
    spool._segment = BadDisk(tmp_path, failures=1 << 30)
    put(spool, "lost")
    spool.close(timeout_s=10)
    assert spool.counts.logged == 0
    assert spool.counts.dropped == 1


_CRASHER = """
import sys
from pathlib import Path
from predictor.spool import SpoolConfig, SpoolWriter
spool = SpoolWriter(SpoolConfig(Path(sys.argv[1]), segment_bytes=4096), str.encode)
n = int(sys.argv[2])
while True:
    for _ in range(20):
        if spool.reserve():
            spool.put(f"{n:06d}" + "x" * 50)
            n += 1
    assert spool.flush(60)
    print(n, flush=True)
"""


@pytest.mark.kill
def test_acked_records_survive_kill_9(tmp_path: Path) -> None:
    acked = 0
    for _ in range(3):
        command = [sys.executable, "-c", _CRASHER, str(tmp_path), str(acked)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(10):
                acked = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            acked = max([acked, *(int(line) for line in process.stdout if line.strip())])
    SpoolWriter(SpoolConfig(tmp_path), encode).close()
    found = {int(text[:6]) for text in spooled(tmp_path)}
    assert found >= set(range(acked))
