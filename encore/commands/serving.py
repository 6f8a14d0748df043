"""`encore serve`: the ranking service; `encore cache`: the item cache that it reads."""

from __future__ import annotations

from typing import Annotated

import typer

from encore.context import invocation


def serve(context: typer.Context) -> None:
    """Run the ranking service over HTTP.

    Open Inference Protocol v2: POST /v2/models/rank/infer and /v2/models/aggregate/infer. Takes
    over newly applied plans and newly trained models while it runs; without models it answers in
    the caller's order and says `degraded`. SIGTERM answers what is in flight and ends.

    Starts `encore cache --standby` beside it, unless item_cache is false.
    """
    from encore.caching import kept_cache
    from encore.logs import start_logging
    from encore.signals import terminate_as_exit
    from encore.wiring import serve_config
    from predictor.timeline import log_fields

    settings = invocation(context).connected
    start_logging(settings.log_level, settings.log_format, log_fields)
    with terminate_as_exit(), kept_cache(settings):
        from predictor.server import run_server  # torch: seconds

        run_server(serve_config(settings))


def cache(
    context: typer.Context,
    standby: Annotated[
        bool,
        typer.Option("--standby", help="Wait while another process keeps it, then take over."),
    ] = False,
) -> None:
    """Keep the item cache that serving processes share.

    All item rows of the service, finalised, in a mapped file. Loads what the store holds, is told
    by it of every change, makes anew what ages. Servers find the cache in item_cache_dir and read
    the store while it is not there or not fresh. One process a machine and service; SIGTERM ends
    it, and its file makes the next start quick.
    """
    from aggregation.cache.feed import run_cache_writer
    from encore.logs import start_logging
    from encore.signals import terminate_as_exit
    from encore.wiring import cache_config
    from store.tracking import TrackedStore
    from store.wire import StoreConfig

    settings = invocation(context).connected
    start_logging(settings.log_level, settings.log_format)
    source = TrackedStore(StoreConfig(settings.store_url, timeout_ms=settings.store_timeout_ms))
    with terminate_as_exit():
        run_cache_writer(cache_config(settings, standby=standby), source)
