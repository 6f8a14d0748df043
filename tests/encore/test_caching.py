"""The process that keeps the item cache beats, and one that stands still is started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aggregation.cache.pulse import Pulse
from encore.caching import cache_spec
from encore.keep import SILENCE_S, Kept
from encore.settings import Settings
from tests.store.servers import own_server

pytestmark = pytest.mark.kill


def kept_writer(directory: Path, store_url: str, silence_s: float) -> Kept:
    settings = Settings(
        data_dir=directory, bootstrap="127.0.0.1:9", store_url=store_url, store_timeout_ms=500
    )
    spec = cache_spec(settings, directory)
    assert spec is not None
    return Kept(replace(spec, silence_s=silence_s))


def look_until(kept: Kept, condition: Callable[[], bool], timeout_s: float = 90.0) -> float:
    """How long that took."""
    began_s = time.monotonic()
    while not condition():
        kept.look(time.monotonic())
        assert time.monotonic() < began_s + timeout_s, "waited too long"
        time.sleep(0.02)
    return time.monotonic() - began_s


def test_one_that_is_stopped_is_killed_and_another_beats(
    valkey: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = kept_writer(tmp_path, valkey, 2.0)
    try:
        look_until(kept, lambda: kept.ready)
        before = kept.pid
        assert before is not None
        os.kill(before, signal.SIGSTOP)
        assert look_until(kept, lambda: kept.restarts == 1) >= 1.9
        assert "cache: it stands still, no beat for 2 s; it is killed" in caplog.text
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
        look_until(kept, lambda: kept.ready)
        assert kept.pid != before
    finally:
        assert kept.end(30) == 0


def test_one_whose_store_does_not_answer_beats(tmp_path: Path) -> None:
    """It waits for the store, and so does one on standby for the other."""
    with own_server(tmp_path) as server:
        first, second = [kept_writer(tmp_path / name, server.url, 4.0) for name in "ab"]
        second.spec = replace(
            second.spec,
            environment={**second.spec.environment, "ENCORE_DATA_DIR": str(tmp_path / "a")},
        )
        for each in "ab":
            (tmp_path / each).mkdir()
        try:
            for kept in (first, second):
                look_until(kept, lambda kept=kept: kept.ready)  # type: ignore[misc]
            server.pause()
            over_s = time.monotonic() + 5
            for kept in (first, second):
                look_until(kept, lambda: time.monotonic() > over_s)
                assert (kept.restarts, kept.ready) == (0, True)
        finally:
            server.go_on()
            assert [each.end(30) for each in (first, second)] == [0, 0]


def test_slow_stores_are_given_their_time(tmp_path: Path) -> None:
    slow = Settings(data_dir=tmp_path, store_timeout_ms=20_000)
    quick = Settings(data_dir=tmp_path)
    specs = [cache_spec(settings, tmp_path) for settings in (slow, quick)]
    assert [spec.silence_s for spec in specs if spec] == [60.0, SILENCE_S]


def test_a_pulse_is_seen_by_another(tmp_path: Path) -> None:
    ours = Pulse.create(tmp_path / "p")
    theirs = Pulse(tmp_path / "p")
    assert ours.beat_ns == 0
    theirs.beat((1 << 62) + 1)
    assert ours.beat_ns == (1 << 62) + 1
    assert Pulse.create(tmp_path / "p").beat_ns == 0
    theirs.beat(7)  # of a process that is gone: its file is another
    assert Pulse(tmp_path / "p").beat_ns == 0
