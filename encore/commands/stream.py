"""`encore stream`, `encore items`, `encore sink`, `encore ship`: the processes on Kafka; and
`encore stream status`, which tells how far they are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from encore.commands.dead import dead
from encore.context import JsonOption, invocation
from encore.signals import terminate_as_exit

if TYPE_CHECKING:
    from streams.config import StreamConfig
    from streams.status import Line, StreamStatus

STREAM_EPILOG = """\b
Examples:
  encore stream                     run a worker
  encore stream status              how far every stream is
  encore stream status --wait 30    return once nothing lags
  encore stream metrics             the same for Prometheus
  encore stream dead list           messages that were refused
"""

stream_group = typer.Typer(
    name="stream",
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=STREAM_EPILOG,
)
stream_group.add_typer(dead)


@stream_group.callback()
def stream(context: typer.Context) -> None:
    """Run a stream worker: actions from Kafka into rows.

    Folds the actions into the rows of the published plan's streamed views. Nothing is acknowledged
    before it is stored; malformed messages go to the dead-letter topic. SIGTERM drains and ends.
    Several workers share the partitions.
    """
    if context.invoked_subcommand is not None:
        return
    with terminate_as_exit():
        config = _prepare(context)
        from streams.leaving import ending
        from streams.worker import run_worker

        code = ending(run_worker(config))
    raise typer.Exit(code)


@stream_group.command("status")
def status(
    context: typer.Context,
    wait: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Return once nothing lags; fail after this."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far every stream is, by partition.

    Lag is counted in messages, to the high watermark of a fetch. Rate (actions a second), late,
    future and dead are what the process that has the partition said of itself since it took it.
    """
    from encore import loops
    from encore.output import put_json
    from encore.wiring import stream_config
    from store.redis_store import AsyncRedisRowStore
    from streams.status import read_status, wait_settled

    config = stream_config(invocation(context).connected)

    async def read() -> StreamStatus:
        async with AsyncRedisRowStore(config.store_url) as store:
            now_ms = time.time_ns() // 1_000_000
            if wait is None:
                return await read_status(config, store, now_ms)
            return await wait_settled(config, store, now_ms, wait)

    found = loops.run(read)
    if as_json:
        put_json(_status_data(found))
    else:
        _put_status(found)


def _status_data(found: StreamStatus) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "lag": found.lag,
        "partitions": [asdict(line) | {"lag": line.lag} for line in found.lines],
        "aside": found.aside,
        "unshipped_bytes": found.unshipped_bytes,
        "lacks": [asdict(lack) | {"do": lack.do} for lack in found.lacks],
        "accepted": [
            {"whose": each.whose, **asdict(each.loss), "messages": each.loss.messages}
            for each in found.accepted
        ],
    }


def _put_status(found: StreamStatus) -> None:
    from encore.output import put, put_facts, put_table

    columns = ("does", "topic", "partition", "stored", "end", "lag", "rate")
    counts = ("late", "future", "dead")

    def cells(line: Line) -> tuple[str, ...]:
        own = [str(getattr(line, name)) for name in columns]
        told = [str(getattr(line.counts, name)) for name in counts]
        newest = time.strftime("%F %T", time.gmtime(line.watermark_ms / 1_000))
        return (
            *own,
            *told,
            str(line.epoch),
            newest if line.watermark_ms else "-",
            line.owner or "-",
        )

    put_table(
        (*columns, *counts, "epoch", "watermark (UTC)", "owner"), list(map(cells, found.lines))
    )
    put("")
    aside = {name: f"{count} messages" for name, count in found.aside.items() if count}
    put_facts({**aside, "spool": f"{found.unshipped_bytes} bytes not in Kafka yet"})
    for line in (*found.lacks, *found.accepted):
        put(str(line))


@stream_group.command("metrics")
def metrics(context: typer.Context) -> None:
    """Answer Prometheus on stream_metrics_port.

    One process tells of all streams, as `encore stream status` does, wherever the workers run.
    """
    from encore.logs import start_logging
    from encore.stream_metrics import tell
    from encore.wiring import stream_config
    from streams.leaving import run_until_told

    settings = invocation(context).connected
    start_logging(settings.log_level, settings.log_format)
    place = settings.http_host, settings.stream_metrics_port
    with terminate_as_exit():
        run_until_told(lambda: tell(stream_config(settings), *place))


def items(context: typer.Context) -> None:
    """Run an item worker: actions re-keyed by item, into rows.

    Sends each action on to the topic keyed by item, and folds that topic into the rows of the
    published plan's item views. Each logged action counts once, also when either half is repeated.
    SIGTERM drains and ends. Several workers share the partitions.
    """
    with terminate_as_exit():
        config = _prepare(context)
        from streams.item_worker import run_item_worker
        from streams.leaving import ending

        code = ending(run_item_worker(config))
    raise typer.Exit(code)


def sink(
    context: typer.Context,
    accept_loss: Annotated[
        bool,
        typer.Option("--accept-loss", help="Go on without what a topic dropped; archived as lost."),
    ] = False,
) -> None:
    """Archive actions and rank log as Parquet.

    Writes below data_dir/archive, one file a range of offsets; a file is complete once it has its
    name, and only then are its messages acknowledged. SIGTERM writes what is held and ends.
    """
    with terminate_as_exit():
        config = _prepare(context)
        from streams.leaving import ending
        from streams.sink import run_sink

        code = ending(run_sink(config, accept_loss))
    raise typer.Exit(code)


def ship(context: typer.Context) -> None:
    """Send the spooled rank log to Kafka.

    Reads the segments that the ranking service wrote to spool_dir and deletes each once all of it
    is confirmed. SIGTERM ends after the record in flight.
    """
    from encore.wiring import ensure_rank_topics

    with terminate_as_exit():
        config = _prepare(context)
        ensure_rank_topics(invocation(context).connected)
        from streams.ship import run_shipper

        code = run_shipper(config)
    raise typer.Exit(code)


def _prepare(context: typer.Context) -> StreamConfig:
    """Logging and configuration: what they have in common."""
    from encore.logs import start_logging
    from encore.wiring import stream_config

    settings = invocation(context).connected
    start_logging(settings.log_level, settings.log_format)
    return stream_config(settings)
