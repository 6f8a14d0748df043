"""`encore stream status` and `encore stream dead`, as somebody at a terminal sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from encore.cli import main
from encore.local import start_broker
from encore.supervise import Supervisor
from schemas.names import HEADER_CODE, HEADER_CONTENT, HEADER_REASON, HEADER_SOURCE, PLAN_KEY
from schemas.plan import dump_plan
from store.redis_store import RedisRowStore
from streams.admin import ensure_topics
from streams.config import StreamConfig
from streams.producer import ActionProducer
from tests.patience import WAIT_S, patient
from tests.streams.support import T0, hears, own_plan, raw_producer, some_actions, wait_until

LETTERS = {
    b'{"nonsense": 1}': {HEADER_CONTENT: b"action-json"},
    b"\x00\x01" * 300: {},
}


@pytest.fixture
def broker_of_its_own(
    tmp_path: Path, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A broker with two letters, and settings that name it."""
    server = start_broker(tmp_path)
    url = valkey.removesuffix("/0") + "/9"
    monkeypatch.setenv("ENCORE_BOOTSTRAP", server.address)
    monkeypatch.setenv("ENCORE_STORE_URL", url)
    monkeypatch.setenv("ENCORE_DATA_DIR", str(tmp_path / "data"))
    with RedisRowStore(patient(url)) as store:
        store._ask(("FLUSHDB",), "test")
    ensure_topics(server.address, StreamConfig(server.address, url, tmp_path).topics)
    with raw_producer(server.address) as producer:
        for value, own in LETTERS.items():
            headers = own | {
                HEADER_SOURCE: b"actions/0/7",
                HEADER_CODE: b"action",
                HEADER_REASON: b"a reason",
            }
            send = producer.send(
                "actions.dead", value=value, key=b"12", headers=list(headers.items())
            )
            send.get(60)
    yield server.address
    server.child.kill()


def test_status(broker_of_its_own: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["lag"], found["unshipped_bytes"]) == (0, 0)
    assert found["aside"]["actions.dead"] == 2
    assert {line["does"] for line in found["partitions"]} == {
        *("rows", "re-keying", "item rows", "archive")
    }
    assert main(["stream", "status", "--wait", "60"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = "does  topic  partition  stored  end  lag  rate  late  future  dead  epoch"
    assert lines[0].split()[: len(head.split())] == head.split()
    assert lines[0].endswith("watermark (UTC)  owner")
    assert lines[1].split()[:6] == ["rows", "actions", "0", "0", "0", "0"]
    assert "actions.dead  2 messages" in lines


def test_letters(broker_of_its_own: str, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str) -> str:
        assert main(["stream", "dead", *words]) == 0
        return capsys.readouterr().out

    assert printed("list").splitlines() == [
        "letter  put back  source       code    reason",
        "0       no        actions/0/7  action  a reason",
        "1       no        actions/0/7  action  a reason",
    ]
    assert [each["letter"] for each in json.loads(printed("list", "--last", "1", "--json"))] == [1]
    assert printed("list", "--topic", "rank-log") == "none\n"
    assert '{"nonsense": 1}' in printed("show", "0")
    assert "header encore-content  'action-json'" in printed("show", "0")
    shown = printed("show", "1")
    assert "     0  00 01 00 01" in shown
    assert shown.endswith("… 600 bytes\n")
    assert json.loads(printed("show", "1", "--json"))["value_hex"] == "0001" * 300
    told = printed("redrive", "--all")
    assert told.startswith("0 left: sent_ms: needs ")
    assert told.endswith("put back         0\nput back before  0\nleft             2\n")
    assert set(json.loads(printed("redrive", "1", "--json"))["refused"]) == {"1"}
    assert main(["stream", "dead", "redrive"]) == 1
    assert "needs letters, or --all, got neither" in capsys.readouterr().err
    assert main(["stream", "dead", "redrive", "1", "--all"]) == 1
    assert main(["stream", "dead", "show", "7"]) == 1
    assert "actions.dead: needs a letter from 0 to 1, got 7" in capsys.readouterr().err


@pytest.mark.slow
def test_the_last_line_of_a_log_says_why_it_ended(broker_of_its_own: str, tmp_path: Path) -> None:
    """Also of a worker that had its partitions: what it is made of says nothing behind that."""
    url = os.environ["ENCORE_STORE_URL"]
    actions = some_actions(20, 5)
    with RedisRowStore(patient(url)) as store, Supervisor(tmp_path, {}) as processes:
        store.put_text(PLAN_KEY, dump_plan(own_plan("actions")))
        child = processes.start("stream", ["stream"])
        with ActionProducer(broker_of_its_own, "actions", 4) as producer:
            producer.send(actions, T0)
            wait_until(lambda: bool(store.get_progress("actions", "encore")), WAIT_S)
            with redis.Redis.from_url(url) as client:
                client.flushdb()
            producer.send(actions, T0)
        assert child.wait(WAIT_S) == 1
        (*_, last) = child.log_tail().split(" | ")
        assert " ERROR encore.streams: encore: ended: " in last


@pytest.mark.kill
@pytest.mark.parametrize("command", ["stream", "sink"])
def test_a_signal_while_a_process_is_loaded_ends_it_in_order(command: str, tmp_path: Path) -> None:
    settings = {
        "ENCORE_BOOTSTRAP": "127.0.0.1:9",
        "ENCORE_STORE_URL": "redis://127.0.0.1:9/0",
        "ENCORE_DATA_DIR": str(tmp_path),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "encore", command],
        env=os.environ | settings,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: hears(process.pid, signal.SIGTERM))
        process.terminate()
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode in (0, 130)
        assert ("stopped" in said) == (process.returncode == 130)
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()
