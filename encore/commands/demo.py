"""`encore demo`: the whole job, told as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encore.context import invocation

KUAIRAND = Path(__file__).parents[2] / "examples" / "kuairand"


def demo(
    context: typer.Context,
    kuairand: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            show_default="examples/kuairand",
            help="KuaiRand's tables.",
        ),
    ] = KUAIRAND,
) -> None:
    """Show the whole flow on real data.

    Starts a local stack of its own, applies the feature repo, loads attributes of users and videos,
    replays twelve days of real actions through broker, worker and ranking service, trains both
    models from the service's log, loads them into the running service, ranks with them, judges
    them, and rebuilds from the log what they saw. Takes under three minutes on two cores. Files are
    in data_dir/demo, which is emptied first. Ends with 1 when something does not hold.
    """
    from encore.signals import terminate_as_interrupt

    settings = invocation(context).settings
    with terminate_as_interrupt() as interruption:
        from encore.demo import demo_settings, run_demo

        report = run_demo(demo_settings(settings), kuairand, interruption.check)
    if report.failures:
        raise typer.Exit(1)
