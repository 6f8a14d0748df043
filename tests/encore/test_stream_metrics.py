"""`encore stream metrics`: what it makes of a status, and the process itself."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from encore.children import ChildSpec, spawn, wait_ready
from encore.local import free_port
from encore.stream_metrics import StreamMetrics, tell
from schemas.errors import LocalError
from streams.admin import ensure_topics
from streams.config import StreamConfig
from streams.heartbeat import Counts
from streams.leaving import LEAVE_UNBEGUN_S
from streams.status import Line, StreamStatus
from tests.patience import WAIT_S

ROWS = Line("rows", "g", "actions", 0, 40, 70, 2, 5_500, "host:1", 3.0, Counts(90, 4, 3, 2))
IDLE = Line("archive", "a", "actions", 1, 9, 9, 2, 0)
STATUS = StreamStatus((ROWS, IDLE), {"actions.dead": 2}, 77)


def samples(metrics: StreamMetrics) -> dict[tuple[str, ...], float]:
    """By series and its labels' values, sorted by the labels' names."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_status_as_series() -> None:
    now_s = 1_000.0
    metrics = StreamMetrics(clock_s=lambda: now_s)
    assert samples(metrics) == {("encore_stream_status_failures_total",): 0}
    metrics.take(STATUS)
    now_s = 1_007.0
    metrics.failed()
    found = samples(metrics)
    rows, idle = ("rows", "0", "actions"), ("archive", "1", "actions")
    assert found["encore_stream_lag_messages", *rows] == 30
    assert found["encore_stream_lag_messages", *idle] == 0
    assert found["encore_stream_owned", *rows] == 1
    assert found["encore_stream_owned", *idle] == 0
    assert found["encore_stream_end_offset", *rows] == 70
    assert found["encore_stream_epoch", *idle] == 2
    assert found["encore_stream_watermark_seconds", *rows] == 5.5
    assert ("encore_stream_watermark_seconds", *idle) not in found
    assert found["encore_stream_actions_total", "rows", "late", "0", "actions"] == 4
    assert found["encore_stream_actions_total", "rows", "actions", "0", "actions"] == 90
    assert found["encore_stream_aside_messages", "actions.dead"] == 2
    assert found["encore_spool_unshipped_bytes",] == 77
    assert found["encore_stream_status_age_seconds",] == 7
    assert found["encore_stream_status_failures_total",] == 1


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    config = StreamConfig("127.0.0.1:1", "redis://127.0.0.1:1/0", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(LocalError) as error:
        asyncio.run(tell(config, *taken.getsockname()[:2]))
    assert error.value.do == "choose another stream_metrics_port"


def test_the_process_answers_and_ends_in_order(broker: str, valkey: str, tmp_path: Path) -> None:
    url, port = valkey.removesuffix("/0") + "/9", free_port()
    ensure_topics(broker, StreamConfig(broker, url, tmp_path).topics)
    environment = os.environ | {
        "ENCORE_BOOTSTRAP": broker,
        "ENCORE_STORE_URL": url,
        "ENCORE_DATA_DIR": str(tmp_path),
        "ENCORE_STREAM_METRICS_PORT": str(port),
        "ENCORE_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "encore", "stream", "metrics"]
    log = tmp_path / "metrics.log"
    child = spawn(ChildSpec("metrics", command, log, environment=environment))

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
                return b'encore_stream_lag_messages{does="rows"' in reply.read()
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_ready(child, answers, WAIT_S)
    finally:
        code = child.stop(60)
    assert code == 0, log.read_text()
    assert '"message": "metrics of the streams on http://127.0.0.1' in log.read_text()


def test_it_ends_in_time_though_the_broker_never_answers(valkey: str, tmp_path: Path) -> None:
    log = tmp_path / "metrics.log"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = os.environ | {
            "ENCORE_BOOTSTRAP": f"127.0.0.1:{silent.getsockname()[1]}",
            "ENCORE_STORE_URL": valkey,
            "ENCORE_DATA_DIR": str(tmp_path),
            "ENCORE_STREAM_METRICS_PORT": "0",
        }
        command = [sys.executable, "-m", "encore", "stream", "metrics"]
        child = spawn(ChildSpec("metrics", command, log, environment=environment))
        try:
            silent.settimeout(WAIT_S)
            silent.accept()[0].close()  # whether somebody is there
            with silent.accept()[0] as asks:
                assert asks.recv(1) != b"", "it asks, and waits"
                child.terminate()
                assert child.wait(LEAVE_UNBEGUN_S + 10) == 0
        finally:
            child.kill()
