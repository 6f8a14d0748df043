"""`encore up`: the local stack until Ctrl-C."""

from __future__ import annotations

import typer

from encore.context import invocation

UP_EPILOG = """\b
Examples:
  encore up
  ENCORE_HTTP_PORT=8081 encore up
"""


def up(context: typer.Context) -> None:
    """Run the whole local stack until Ctrl-C.

    Starts broker, store, stream worker, item worker, sink, shipper and ranking service, all on
    127.0.0.1. The other commands find them by themselves while they run. Logs and files lie in
    data_dir (.encore). The broker keeps its topics in memory and starts empty each time; the store
    keeps its rows.
    """
    from encore.output import say
    from encore.signals import terminate_as_interrupt
    from encore.stack import running

    settings = invocation(context).settings
    with terminate_as_interrupt() as interruption:
        try:
            with running(settings, note=say) as stack:
                say(f"logs      {settings.runs}/*.log")
                say("ready; Ctrl-C stops everything")
                stack.processes.watch(interruption.check)
        except KeyboardInterrupt:
            say("stopped")
