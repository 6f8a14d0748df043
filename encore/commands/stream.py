"""`encore stream`, `encore items`, `encore sink`, `encore ship`: the processes on Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from encore.context import invocation

if TYPE_CHECKING:
    from streams.config import StreamConfig


def stream(context: typer.Context) -> None:
    """Run a stream worker: actions from Kafka into rows.

    Folds the actions into the rows of the published plan's streamed views. Nothing is acknowledged
    before it is stored; malformed messages go to the dead-letter topic. SIGTERM drains and ends.
    Several workers share the partitions.
    """
    config = _prepare(context)
    from streams.worker import run_worker

    raise typer.Exit(run_worker(config))


def items(context: typer.Context) -> None:
    """Run an item worker: actions re-keyed by item, into rows.

    Sends each action on to the topic keyed by item, and folds that topic into the rows of the
    published plan's item views. Each logged action counts once, also when either half is repeated.
    SIGTERM drains and ends. Several workers share the partitions.
    """
    config = _prepare(context)
    from streams.item_worker import run_item_worker

    raise typer.Exit(run_item_worker(config))


def sink(context: typer.Context) -> None:
    """Archive actions, re-keyed too, and rank log from Kafka to Parquet.

    Writes below data_dir/archive, one file a range of offsets; a file is complete once it has its
    name, and only then are its messages acknowledged. SIGTERM writes what is held and ends.
    """
    config = _prepare(context)
    from streams.sink import run_sink

    raise typer.Exit(run_sink(config))


def ship(context: typer.Context) -> None:
    """Send the spooled rank log to Kafka.

    Reads the segments that the ranking service wrote to spool_dir and deletes each once all of it
    is confirmed. SIGTERM ends after the record in flight.
    """
    config = _prepare(context)
    from streams.ship import run_shipper

    raise typer.Exit(run_shipper(config))


def _prepare(context: typer.Context) -> StreamConfig:
    """Logging, topics, configuration: what they have in common."""
    from encore.logs import start_logging
    from encore.wiring import ensure_topics, stream_config

    settings = invocation(context).connected
    start_logging(settings.log_level)
    ensure_topics(settings)
    return stream_config(settings)
