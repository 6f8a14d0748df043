"""Folders of the service that take nothing more: what it says meanwhile, and that it comes back.

A limit on the size of the processes' files stands for a full disk: a write behind it fails.
"""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from predictor.client import Asked
from predictor.http_client import HttpRankingClient
from tests.encore.test_serving import Serving, served
from tests.predictor.support import ITEMS, USERS, wait_until

FULL_BYTES = 1 << 10  # less than a record of the rank log
QUEUE = 20
ROWS = 2 + 2 * len(ITEMS)


def limit_files(serving: Serving, limit: int) -> None:
    """Of the process, and of those that it starts from now on."""
    resource.prlimit(serving.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def records(serving: Serving, outcome: str) -> float:
    return serving.metric(f'encore_log_records_total{{outcome="{outcome}"}}')


@pytest.mark.slow
@pytest.mark.kill
def test_a_full_disk_costs_records_that_are_counted_and_the_cache_until_there_is_room(
    valkey: str, tmp_path: Path
) -> None:
    url = valkey.removesuffix("/0") + "/8"
    with served(url, tmp_path, 1, spool_queue=QUEUE) as serving:
        limit_files(serving, FULL_BYTES)
        wait_until(serving.all_ready, 90)
        with HttpRankingClient(f"127.0.0.1:{serving.port}") as client:

            def ask(times: int) -> None:
                for _ in range(times):
                    reply = client.rank(USERS[0], ITEMS, Asked(timeout_ms=10_000))
                    assert reply.degraded == ("no_model",)
                    assert reply.parameters["statuses"] == f"PRESENT={ROWS}"

            ask(3 * QUEUE)
            wait_until(lambda: serving.metric("encore_log_disk_faults_total") >= 3, 60)
            ask(1)
            assert serving.metric("encore_log_pending") == QUEUE
            assert (records(serving, "logged"), records(serving, "dropped")) == (0, 2 * QUEUE + 1)
            asked = serving.metric("encore_cache_asked_total")
            assert serving.metric("encore_cache_unusable_total") == asked == 3 * QUEUE + 1
            assert len(list(serving.spool.glob("*.spool"))) == 1, "not one a try"

            limit_files(serving, resource.RLIM_INFINITY)
            wait_until(lambda: serving.metric("encore_log_pending") == 0, 60)
            wait_until(serving.cached, 60)
            assert records(serving, "dropped") == 2 * QUEUE + 1
        serving.process.terminate()
        assert serving.process.wait(60) == 0
    told = "".join(serving.said)
    assert told.count("spool: [Errno 27]") == 1
    assert "needs room for the cached items, got File too large" in told
    assert "the disk takes records again" in told
