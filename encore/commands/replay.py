"""`encore replay`: a recorded log in event time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from encore.context import Invocation, JsonOption, invocation

REPLAY_EPILOG = """\b
Examples, beside `ENCORE_ALLOW_NOW_MS=true encore up` in another terminal:
  encore load --kuairand examples/kuairand
  encore replay examples/kuairand/interactions.parquet
  encore replay examples/kuairand/interactions.parquet --no-rank
"""


def replay(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="KuaiRand's interactions.parquet; its videos.parquet lies beside it.",
        ),
    ],
    rank: Annotated[
        bool, typer.Option("--rank/--no-rank", help="Send ranking requests, too.")
    ] = True,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the users whose pages are ranked.")
    ] = 0.1,
    last_day_share: Annotated[
        float, typer.Option(min=0, max=1, help="The same on the log's last day.")
    ] = 0.5,
    ticks: Annotated[
        int | None, typer.Option(min=1, help="The log's first ticks alone, for a trial.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay a log in event time through the running stack.

    Ticks of ten minutes: wait until the worker has stored what came before, rank the tick's pages,
    send its actions. The service must allow the requests' clock (allow_now_ms).
    """
    from encore.output import put_facts, put_json
    from encore.progress import Bars

    call = invocation(context)
    settings = call.connected
    from encore.kuairand import load_timeline
    from encore.replay import first_ticks
    from encore.replay import replay as run

    with Bars() as bars:
        bars.update("reading", 0, 1)
        timeline = load_timeline(file.parent, share, last_day_share)
        if ticks is not None:
            timeline = first_ticks(timeline, ticks)
        bars.update("reading", 1, 1, f"{len(timeline.actions):,} actions")
        report = run(
            settings,
            timeline,
            _url(call) if rank else None,
            lambda done, total, words: bars.update("replay", done, total, words),
        )
    replies = {name or "whole": count for name, count in report.degraded.items()}
    if as_json:
        put_json({**asdict(report.counts), "replies": replies, "duplicates": timeline.duplicates})
        return
    counts = report.counts
    put_facts(
        {
            "ticks": f"{counts.ticks:,}",
            "actions": f"{counts.actions:,}",
            "requests": f"{counts.requests:,} of {timeline.all_pages:,} pages",
            "replies": ", ".join(f"{n:,} {name}" for name, n in replies.items()) or "none",
            "waited": f"{counts.waited_s:.1f} s for the worker, {counts.waits:,} times",
        }
    )


def _url(call: Invocation) -> str:
    """The running stack's service, or the one of the settings."""
    from encore.stack_file import running_stack

    stack = running_stack(call.settings.runs)
    if stack is not None and stack.url:
        return stack.url
    return f"http://{call.settings.http_host}:{call.settings.http_port}"
