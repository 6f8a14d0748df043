"""`encore backfill`, `encore rebuild`: rows of a new generation from history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encore.context import Invocation, JsonOption, invocation

if TYPE_CHECKING:
    from encore.backfilling import BackfillResult, Options
    from streams.backfill import BackfillConfig, FillReport

BACKFILL_EPILOG = """\b
Examples:
  encore backfill user_activity                    after an edit: publish it, filled
  encore backfill user_activity video_activity
  encore backfill user_activity --history old/     and from before the log
  encore backfill --cancel                         give up what is under way
"""
REBUILD_EPILOG = """\b
Examples:
  encore rebuild user_activity
  encore rebuild user_activity --history old/      and from before the log, as it was filled once
"""

ViewsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="VIEW...", help="Streamed views.")
]
CoresOption = Annotated[
    int | None, typer.Option(min=1, help="Local processes. Default: all cores.")
]
DaskOption = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Fold on this Dask cluster, tcp://host:8786.")
]
MemoryOption = Annotated[
    int, typer.Option("--memory-mb", min=16, help="For rows being folded, over all processes.")
]
HistoryOption = Annotated[
    list[Path] | None,
    typer.Option(metavar="PATH", exists=True, help="Parquet or JSON lines from before the log."),
]
BeforeOption = Annotated[
    int | None,
    typer.Option(help="Take --history before this time, ms. Default: the first logged action's."),
]
WithoutOption = Annotated[
    bool,
    typer.Option("--without-history", help="Leave out what --history once filled them with."),
]
LossOption = Annotated[
    bool, typer.Option("--accept-loss", help="Fill without what neither archive nor log holds.")
]
WaitOption = Annotated[
    float, typer.Option(help="Seconds without progress in catching up before giving in.")
]


def backfill(
    context: typer.Context,
    views: ViewsArgument = None,
    history: HistoryOption = None,
    before_ms: BeforeOption = None,
    without_history: WithoutOption = False,
    cores: CoresOption = None,
    dask: DaskOption = "",
    memory_mb: MemoryOption = 2_048,
    wait: WaitOption = 60.0,
    accept_loss: LossOption = False,
    retire_models: Annotated[
        bool, typer.Option("--retire-models", help="Remove slots though live models use them.")
    ] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Give up what is under way.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Apply the feature repo with views filled from history.

    Each VIEW takes a new generation. Its rows are folded from the archive (and the log, for what is
    not archived yet) up to exact offsets, workers catch up from there while the stream goes on, and
    then readers switch, at once. Run again after an interruption, it goes on.
    """
    call = invocation(context)
    if cancel:
        _cancel(call, as_json)
        return
    from encore.backfilling import Options

    config = _config(call, cores, dask, memory_mb, tuple(history or ()))
    config = replace(config, before_ms=before_ms, accept_loss=accept_loss)
    options = Options(_views(views), wait_s=wait, without_history=without_history)
    _run(call, config, options, retire_models, as_json)


def rebuild(
    context: typer.Context,
    views: ViewsArgument = None,
    history: HistoryOption = None,
    before_ms: BeforeOption = None,
    without_history: WithoutOption = False,
    cores: CoresOption = None,
    dask: DaskOption = "",
    memory_mb: MemoryOption = 2_048,
    wait: WaitOption = 60.0,
    accept_loss: LossOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fill views anew as they are declared, after a loss.

    As `backfill`, into a new generation, but refuses declarations that are not published. What was
    filled from --history once has to be given again, since neither archive nor log holds it;
    without it a view that has rows of such files is left as it is.
    """
    from encore.backfilling import Options

    call = invocation(context)
    config = _config(call, cores, dask, memory_mb, tuple(history or ()))
    config = replace(config, before_ms=before_ms, accept_loss=accept_loss)
    options = Options(_views(views), True, wait, without_history)
    _run(call, config, options, False, as_json)


def _views(views: list[str] | None) -> tuple[str, ...]:
    if not views:
        raise typer.BadParameter("name at least one view", param_hint="VIEW...")
    return tuple(dict.fromkeys(views))


def _config(
    call: Invocation,
    cores: int | None,
    dask: str,
    memory_mb: int,
    history: tuple[Path, ...],
) -> BackfillConfig:
    import os

    from encore.wiring import open_config
    from streams.backfill import BackfillConfig

    return BackfillConfig(
        open_config(call.connected),
        cores or len(os.sched_getaffinity(0)),
        memory_mb << 20,
        dask,
        history,
    )


def _run(
    call: Invocation, config: BackfillConfig, options: Options, retire: bool, as_json: bool
) -> None:
    from encore.backfilling import run_backfill
    from encore.evolution import as_data, guard, told
    from encore.output import put, put_json, put_table
    from encore.progress import Bars
    from predictor.live import live_models

    models = live_models(call.settings.packages)
    with Bars() as bars:
        review = guard(models, retire=retire)
        result = run_backfill(call.connected, config, options, bars.update, review)
    if as_json:
        put_json(_data(result) | {"difference": as_data(result.difference, models)})
        return
    for line in told(result.difference, models, options.views):
        put(line)
    header = ("view", "actions", "rows", "late", "future", "left out", "not held", "seconds")
    put_table(header, [tuple(map(str, _row(each))) for each in result.fills])


def _row(fill: FillReport) -> tuple[object, ...]:
    counts = fill.counts
    return (
        f"{fill.view}@{fill.generation}",
        fill.actions,
        counts.rows + counts.there,
        counts.late,
        counts.future,
        fill.foreign.after,
        fill.missing,
        f"{fill.seconds:.1f}",
    )


def _data(result: BackfillResult) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "version": result.plan.version,
        "resumed": result.resumed,
        "fills": [asdict(fill) for fill in result.fills],
    }


def _cancel(call: Invocation, as_json: bool) -> None:
    from encore.backfilling import give_up
    from encore.output import put, put_json

    was = give_up(call.stored)
    if as_json:
        put_json({"given_up": was.views, "state": was.state})
        return
    views = ", ".join(f"{name}@{generation}" for name, generation in sorted(was.views.items()))
    put(f"given up: {views}; its rows are read by nobody" if was.active else "nothing was staged")
