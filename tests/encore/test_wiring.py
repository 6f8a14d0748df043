"""Settings reach the rooms, and say the same as the rooms where both have a default."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from encore.doctor import broker
from encore.local import start_broker
from encore.settings import Settings
from encore.wiring import ensure_topics, serve_config, stream_config
from predictor.assembly import ServeConfig
from predictor.freshness import FreshnessConfig
from schemas.errors import StreamError
from streams.config import StreamConfig
from tests.encore.test_doctor import states

SETTINGS = Settings(bootstrap="127.0.0.1:1", store_url="redis://127.0.0.1:2/0")


def test_stream_defaults_are_the_rooms() -> None:
    bare = StreamConfig("127.0.0.1:1", "redis://127.0.0.1:2/0", Path(".encore"))
    wired = stream_config(SETTINGS)
    assert wired.spool == bare.spool
    assert asdict(wired) | {"spool_dir": None} == asdict(bare)


def test_serve_defaults_are_the_rooms() -> None:
    wired = serve_config(SETTINGS)
    assert wired.spool is not None
    bare = ServeConfig(
        store=wired.store,
        service="ranking",
        grpc_port=SETTINGS.grpc,
        packages=SETTINGS.packages,
        spool=type(wired.spool)(SETTINGS.spool),
        item_cache=SETTINGS.cache,
        freshness=FreshnessConfig(
            SETTINGS.group,
            stream_config(SETTINGS).item_group,
            SETTINGS.partitions,
            SETTINGS.stale_after_ms,
        ),
    )
    assert asdict(wired) == asdict(bare)


def test_what_is_set_arrives() -> None:
    changed = SETTINGS.model_copy(
        update={"spool_full": "refuse", "page_size": 7, "store_timeout_ms": 9, "allow_now_ms": True}
    )
    wired = serve_config(changed)
    assert wired.spool is not None
    assert wired.spool.refuse
    assert (wired.page_size, wired.store.timeout_ms, wired.allow_now_ms) == (7, 9, True)


def test_topics_are_made_once_and_never_changed(tmp_path: Path) -> None:
    server = start_broker(tmp_path)  # of its own: these are the topics of everybody
    try:
        settings = SETTINGS.model_copy(update={"bootstrap": server.address, "partitions": 3})
        assert set(states(broker(settings)).values()) == {"ok", "warn"}, "no topics yet"
        ensure_topics(settings)
        ensure_topics(settings)
        assert set(states(broker(settings)).values()) == {"ok"}
        other = settings.model_copy(update={"partitions": 4})
        assert states(broker(other))["topic actions"] == "fail"
        with pytest.raises(StreamError, match="needs 4 partitions, got 3"):
            ensure_topics(other)
    finally:
        server.child.kill()


def test_a_bound_of_staleness_arrives_with_what_the_marks_go_by() -> None:
    wired = serve_config(SETTINGS.model_copy(update={"stale_after_ms": 5, "partitions": 3}))
    assert wired.freshness is not None
    assert (wired.freshness.stale_after_ms, wired.freshness.partitions) == (5, 3)
    assert wired.freshness.group == SETTINGS.group
