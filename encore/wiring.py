"""Settings → what each room is configured with. The rooms know no settings, only these."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from encore.settings import Settings
from store.cores import core_of

if TYPE_CHECKING:
    from aggregation.cache.feed import CacheConfig
    from predictor.assembly import ServeConfig
    from store.redis_store import RedisRowStore
    from store.wire import Disks
    from streams.config import StreamConfig


def stream_config(settings: Settings) -> StreamConfig:
    """What the worker, the item worker, the sink and the shipper are configured with."""
    from streams.config import StreamConfig

    return StreamConfig(
        bootstrap=settings.bootstrap,
        store_url=settings.store_url,
        data_dir=settings.data_dir,
        spool_dir=settings.spool,
        group=settings.group,
        partitions=settings.partitions,
        roll_rows=settings.sink_roll_rows,
        roll_ms=settings.sink_roll_ms,
        durability=settings.durability,
        disks=disks(settings),
        retention_ms=settings.retention_ms,
        core=settings.stream_core,
    )


def disks(settings: Settings) -> Disks:
    """Whose disks durability `fsynced` waits for. Raises SettingsError where there are none."""
    from store.wire import Disks

    return Disks(settings.fsynced_by_store, settings.fsynced_by_replicas)


def topics(settings: Settings) -> dict[str, int]:
    """The topics of encore's streams, with their partition counts."""
    return stream_config(settings).topics


def ensure_rank_topics(settings: Settings) -> None:
    """Create the topics of the rank log alone. Raises StreamError as `ensure_topics`."""
    from streams.admin import ensure_topics as ensure

    rank_topic = stream_config(settings).rank_topic
    wanted = {name: n for name, n in topics(settings).items() if name.startswith(rank_topic)}
    ensure(settings.bootstrap, wanted)


def newest_config(settings: Settings) -> StreamConfig:
    """For the topic that producers write to, which is there: the first, or the last that actions
    were moved to. Raises StoreError, StreamError."""
    from streams.admin import ensure_topics as ensure
    from streams.moving import newest_config as newest

    with _rows(settings) as store:
        config = newest(store, stream_config(settings))
    ensure(settings.bootstrap, config.topics)
    return config


def every_config(settings: Settings) -> tuple[StreamConfig, ...]:
    """For the first topic and each that actions were moved to. Raises StoreError, StreamError."""
    from streams.moving import every_config as configs

    with _rows(settings) as store:
        return configs(store, stream_config(settings))


def open_config(settings: Settings) -> StreamConfig:
    """For the newest topic that may be read. Raises StoreError, StreamError."""
    from streams.moving import open_config as newest_open

    with _rows(settings) as store:
        return newest_open(store, stream_config(settings))


def _rows(settings: Settings) -> RedisRowStore:
    from store.redis_store import RedisRowStore
    from store.wire import StoreConfig

    return RedisRowStore(StoreConfig(settings.store_url, timeout_ms=settings.store_timeout_ms))


def ensure_topics(settings: Settings) -> None:
    """Create the topics that are missing. Raises StreamError when the broker does not answer, or a
    topic has another number of partitions."""
    from streams.admin import ensure_topics as ensure

    ensure(settings.bootstrap, topics(settings))


def cache_config(settings: Settings, *, standby: bool = False) -> CacheConfig:
    """What the process that keeps the item cache is configured with."""
    from aggregation.cache.feed import CacheConfig

    return CacheConfig(
        service=settings.service,
        directory=settings.cache,
        capacity=settings.item_cache_items,
        standby=standby,
    )


def serve_config(settings: Settings, socket: Path | None = None) -> ServeConfig:
    """What a serving process is configured with. socket: where its supervisor asks it, for one of
    several that share their ports."""
    from predictor.assembly import ServeConfig
    from predictor.cascade import CascadeConfig
    from predictor.freshness import FreshnessConfig
    from predictor.limits import Limits
    from predictor.spool import SpoolConfig
    from predictor.watch import WatchRequests
    from store.wire import StoreConfig

    streams = stream_config(settings)
    freshness = FreshnessConfig(
        streams.group, streams.item_group, streams.partitions, settings.stale_after_ms
    )
    return ServeConfig(
        store=StoreConfig(settings.store_url, timeout_ms=settings.store_timeout_ms),
        service=settings.service,
        host=settings.http_host,
        port=settings.http_port,
        grpc_port=settings.grpc,
        metrics_port=settings.metrics_port if socket is None else None,
        share_ports=socket is not None,
        socket=socket,
        core=None if settings.cores is None else core_of(settings.cores, 0),
        packages=settings.packages,
        spool=SpoolConfig(
            settings.spool,
            queue_records=settings.spool_queue,
            refuse=settings.spool_full == "refuse",
        ),
        cascade=CascadeConfig(settings.fine_limit, settings.draw_share, settings.draw_count),
        limits=Limits(
            body_bytes=settings.max_body_bytes,
            candidates=settings.max_candidates,
            in_flight=settings.max_in_flight,
        ),
        page_size=settings.page_size,
        timeout_ms=settings.timeout_ms,
        allow_now_ms=settings.allow_now_ms,
        version=version("encore"),
        item_cache=settings.cache if settings.item_cache else None,
        item_cache_max_age_ms=settings.item_cache_max_age_ms,
        freshness=freshness,
        watch=WatchRequests(settings.trace_endpoint, settings.trace_share, settings.slow_ms),
    )
