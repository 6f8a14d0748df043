"""`encore stream`, `sink`, `ship`, `replay`: actions in, rows and archives out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encore.context import JsonOption, invocation


def stream(context: typer.Context) -> None:
    """Run a stream worker: fold actions from Kafka into the rows of the published plan.

    Nothing is acknowledged before it is stored. Malformed messages go to the dead-letter topic.
    SIGTERM drains what was fetched and ends; several workers share the partitions.
    """
    from encore.wiring import ensure_topics, stream_config
    from streams.worker import run_worker

    settings = invocation(context).connected
    ensure_topics(settings)
    run_worker(stream_config(settings))


def sink(context: typer.Context) -> None:
    """Archive the topics of actions and rank log as Parquet, below data_dir/archive."""
    from encore.wiring import ensure_topics, stream_config
    from streams.sink import run_sink

    settings = invocation(context).connected
    ensure_topics(settings)
    run_sink(stream_config(settings))


def ship(context: typer.Context) -> None:
    """Send the ranking service's spooled log to Kafka, each record once it is confirmed."""
    from encore.wiring import ensure_topics, stream_config
    from streams.ship import run_shipper

    settings = invocation(context).connected
    ensure_topics(settings)
    run_shipper(stream_config(settings))
