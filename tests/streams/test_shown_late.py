"""A broker that shows a later batch before an earlier one: processes read both, in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.admin import ensure_topics
from streams.producer import ActionProducer
from tests.patience import WAIT_S
from tests.streams.bucket import Bucket, broker_over, offset_of
from tests.streams.support import (
    T0,
    assert_rows_equal_oracle,
    make_stack,
    running,
    some_actions,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MESSAGES, LATE = 8, 3


@pytest.mark.parametrize("kind", ["worker", "sink"])
def test_a_batch_that_is_shown_late_is_waited_for(kind: str, valkey: str, tmp_path: Path) -> None:
    """It is there again as soon as the process has said that it is missing."""
    with Bucket() as bucket, broker_over(bucket, tmp_path / "broker") as bootstrap:
        stack = make_stack(bootstrap, valkey, tmp_path / "data", roll_ms=300)
        config = stack.config
        ensure_topics(bootstrap, config.topics)
        parts = [some_actions(20, 1, seed) for seed in range(MESSAGES)]
        for part in parts:
            part["user"] = parts[0]["user"][0]
        with ActionProducer(bootstrap, config.topic, config.partitions) as producer:
            for part in parts:
                ends = producer.send(part, T0 + 20_000)
        ((partition, end),) = ends.items()
        place = f"clusters/encore/topics/{config.topic}/partitions/{partition:010}/records/"
        batches = {offset_of(key): (key, held.content) for key, held in bucket.below(place)}
        assert end == MESSAGES and bucket.drop(config.topic, partition, LATE, LATE + 1) == 1

        group = config.group if kind == "worker" else config.archive_group

        def done() -> bool:
            with stack.store() as store:
                mark = store.get_progress(config.topic, group).get(partition)
            return mark is not None and mark.next_offset == end

        with running(kind, stack) as process:
            wait_until(lambda: "looked for again" in process.text(), WAIT_S)
            bucket.put(*batches[LATE], absent=True, tag=None)
            wait_until(done, WAIT_S)
            assert process.terminate() == 0
            assert "messages are missing" not in process.text()
        if kind == "worker":
            with stack.store() as store:
                sent = [(part, T0 + 20_000) for part in parts]
                assert_rows_equal_oracle(store, stack.plan.views[0], sent)
