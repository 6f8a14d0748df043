"""`encore serve`: the ranking service."""

from __future__ import annotations

import typer

from encore.context import invocation


def serve(context: typer.Context) -> None:
    """Run the ranking service over HTTP.

    Open Inference Protocol v2: POST /v2/models/rank/infer and /v2/models/aggregate/infer. Takes
    over newly applied plans and newly trained models while it runs; without models it answers in
    the caller's order and says `degraded`. SIGTERM answers what is in flight and ends.
    """
    from encore.logs import start_logging
    from encore.signals import terminate_as_exit
    from encore.wiring import serve_config
    from predictor.timeline import log_fields

    settings = invocation(context).connected
    start_logging(settings.log_level, settings.log_format, log_fields)
    with terminate_as_exit():
        from predictor.server import run_server  # torch: seconds

        run_server(serve_config(settings))
