"""`encore serve`: the ranking service; `encore cache`: the item cache that it reads."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from encore.context import invocation

SERVE_EPILOG = """\b
Examples:
  encore serve
  encore serve --workers 4
"""


def serve(
    context: typer.Context,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Serving processes on the same ports; the setting unless given.",
        ),
    ] = None,
    socket: Annotated[Path | None, typer.Option("--socket", hidden=True)] = None,
) -> None:
    """Run the ranking service over HTTP and gRPC.

    Open Inference Protocol v2, models `rank` and `aggregate`. Takes over newly applied plans and
    newly trained models while it runs; without models it answers in the caller's order and says
    `degraded`. SIGTERM answers what is in flight and ends. With more than one process, one that
    dies is started again, and metrics_port has the metrics of all.

    Keeps `encore cache --standby` running beside it, unless item_cache is false.
    """
    from encore.caching import kept_cache
    from encore.logs import start_logging
    from encore.signals import terminate_as_exit, terminate_as_interrupt

    settings = invocation(context).stored
    count = workers or settings.workers
    if count > 1 and socket is None:
        from encore.serving import run_workers

        start_logging(settings.log_level, settings.log_format)
        with terminate_as_interrupt() as interruption:
            code = run_workers(settings, count, interruption.check)
        raise typer.Exit(code)

    # Package checks are started while calls are served, and execute another program at once.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
    from encore.wiring import serve_config
    from predictor.timeline import log_fields

    start_logging(settings.log_level, settings.log_format, log_fields)
    with terminate_as_exit(), kept_cache(settings) if socket is None else nullcontext() as look:
        from predictor.server import run_server  # torch: seconds

        run_server(serve_config(settings, socket), look)


def cache(
    context: typer.Context,
    standby: Annotated[
        bool,
        typer.Option("--standby", help="Wait while another process keeps it, then take over."),
    ] = False,
    pulse: Annotated[Path | None, typer.Option("--pulse", hidden=True)] = None,
) -> None:
    """Keep the item cache that serving processes share.

    All item rows of the service, finalised, in a mapped file. Loads what the store holds, is told
    by it of every change, makes anew what ages. Servers find the cache in item_cache_dir and read
    the store while it is not there or not fresh. One process a machine and service; SIGTERM ends
    it, and its file makes the next start quick.
    """
    from aggregation.cache.keeper import run_cache_writer
    from aggregation.cache.pulse import Pulse
    from encore.logs import start_logging
    from encore.signals import terminate_as_exit
    from encore.wiring import cache_config
    from store.tracking import TrackedStore
    from store.wire import StoreConfig

    settings = invocation(context).stored
    start_logging(settings.log_level, settings.log_format)
    source = TrackedStore(StoreConfig(settings.store_url, timeout_ms=settings.store_timeout_ms))
    beats = None if pulse is None else Pulse(pulse)
    with terminate_as_exit():
        run_cache_writer(cache_config(settings, standby=standby), source, pulse=beats)
