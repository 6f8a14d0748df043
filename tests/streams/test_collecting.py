"""The order of earlier logs where the actions moved to another topic."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from schemas.errors import StreamError
from streams.archive import name_log, partitions_of_log
from streams.collecting import Before, Collected, Rest, collect
from streams.history import WHOLE
from streams.origins import Log
from tests.streams.test_backfill import ListReader, archive
from tests.streams.test_filling import messages
from tests.streams.test_folding import Batch

PRESENT = Log("t.3", "a-now", 5)


def gather(root: Path, sent: list[list[Batch]], *ended: Before) -> Collected:
    rest = Rest(ListReader(sent), root / "aside")
    return asyncio.run(collect(root / "archive", PRESENT, {0: 2, 1: 0, 2: 0}, rest, ended))


def logs_of(found: Collected, partition: int) -> list[str]:
    """Of which log each file is; of which topic's tail."""
    files = [file for file in found.files[partition] if file.log_partition == WHOLE]
    assert found.files[partition][: len(files)] == files, "the present log comes last"
    return [Path(file.path).parts[-3].removeprefix("topic_id=") for file in files]


def test_topic_after_topic_whenever_their_logs_began(tmp_path: Path) -> None:
    """Apps wrote to the second topic before the first one's last log began, and its archive ends
    before that log does. A log that nobody named comes first."""
    sent, root = messages(9), tmp_path / "archive"
    later = [(actions, sent_ms + 10_000) for actions, sent_ms in sent[0]]
    latest = [(actions, sent_ms + 20_000) for actions, sent_ms in sent[0]]
    for topic_id, topic, batches in (
        ("b-lost-of-second", "t.2", sent[0]),
        ("c-last-of-second", "t.2", later),
        ("d-last-of-first", "t", later),
        ("e-lost-of-first", "t", sent[0]),
        ("f-of-an-old-archive", "", latest),
        ("a-now", "t.3", latest),
    ):
        archive(root, topic_id, 0, batches[:4], 0)
        if topic:
            name_log(root, topic_id, topic, 2)
    first = Before(Log("t", "d-last-of-first", 2), {0: 6, 1: 0})
    second = Before(Log("t.2", "c-last-of-second", 4), {0: 4, 1: 0})
    assert logs_of(gather(tmp_path, sent, first, second), 0) == [
        "f-of-an-old-archive",
        "e-lost-of-first",
        "d-last-of-first",
        "t",  # its tail, of the log itself
        "b-lost-of-second",
        "c-last-of-second",
    ]


def test_earlier_topics_that_were_deleted_are_history_of_every_partition(tmp_path: Path) -> None:
    """Users of one partition came from any of a topic with another count."""
    sent, root = messages(9), tmp_path / "archive"
    for partition in (0, 1):
        archive(root, "first", partition, sent[partition], 0)
    for partition in (0, 1, 2):
        assert logs_of(gather(tmp_path, sent), partition) == ["first", "first"]


@pytest.mark.parametrize("counts", [(2, 4), (2, None)])
def test_logs_with_other_partitions_are_history_of_every_partition(
    tmp_path: Path, counts: tuple[int, int | None]
) -> None:
    """Nobody remembers the moves of a store that was wiped, nor a broker set up with another count:
    the archive says how many partitions its logs had, and what does not is taken for another."""
    sent, root = messages(9), tmp_path / "archive"
    later = [(actions, sent_ms + 10_000) for actions, sent_ms in sent[0]]
    for topic_id, topic, partition, batches in (
        ("b-first", "t", 0, sent[0]),
        ("a-second", "t.2", 3, later),  # a partition that the present log does not have
        ("c-lost-since", "t", 1, [(actions, sent_ms + 20_000) for actions, sent_ms in sent[1]]),
    ):
        archive(root, topic_id, partition, batches, 0)
        count = counts[topic == "t.2"]
        if count is not None:
            name_log(root, topic_id, topic, count)
    rest = Rest(ListReader(sent), tmp_path / "aside")
    found = asyncio.run(collect(root, Log("t", "a-now", 1), {0: 2, 1: 0}, rest))
    for partition in (0, 1):
        assert logs_of(found, partition) == ["b-first", "a-second", "c-lost-since"]


def test_a_count_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "topic_id=a").mkdir()
    (tmp_path / "topic_id=a" / "_partitions").write_text("many")
    with pytest.raises(StreamError, match="needs a number of partitions, got 'many'; remove it"):
        partitions_of_log(tmp_path, "a")
