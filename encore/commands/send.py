"""`encore send`: actions by hand, and from any program that can print a line."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from encore.context import JsonOption, invocation

SEND_EPILOG = """\b
Examples:
  echo '{"user": 1, "item": 3, "type": "like"}' | encore send
  encore send actions.jsonl
"""


def send(
    context: typer.Context,
    file: Annotated[
        typer.FileText, typer.Argument(metavar="[FILE]", help="Lines of JSON; stdin unless given.")
    ] = "-",  # type: ignore[assignment]
    as_json: JsonOption = False,
) -> None:
    """Send actions, one JSON object a line.

    A line has user, item and type, and what else docs/actions.md says; time_ms is now where it is
    left out. A line that is no action ends the command: those before it are sent.
    """
    from encore.output import put, put_json
    from encore.wiring import newest_config
    from streams.lines import send_lines
    from streams.producer import ActionProducer

    settings = invocation(context).connected
    config = newest_config(settings)
    with ActionProducer(config.bootstrap, config.topic, config.partitions) as producer:
        sent = send_lines(file, producer, _now_ms, getattr(file, "name", "stdin"))
    if as_json:
        put_json({"actions": sent.actions, "ends": {str(p): at for p, at in sent.ends.items()}})
    else:
        put(f"{sent.actions} actions sent")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
