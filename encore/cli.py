"""The command line. Commands are thin: they read settings, call a room, print what came back.

Exit codes: 0 done; 1 refused or failed, with one line on stderr saying where, what was required,
what came and what to do (one JSON object with `--json`); 2 wrong usage; 130 interrupted.

Rooms are imported inside the commands that use them: only one command in ten needs Feast or torch,
and `encore --help` needs neither.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from encore.commands import (
    backfill,
    contract,
    demo,
    diagnose,
    feature,
    features,
    generations,
    local,
    model,
    models,
    replay,
    send,
    serving,
    stream,
    topics,
)
from encore.context import Invocation
from encore.output import put, say_error
from schemas.errors import EncoreError

app = typer.Typer(
    name="encore",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_EPILOG = """\b
Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.
Settings come from ENCORE_* variables, then encore.toml, then defaults.
"""


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        put(f"encore {version('encore')}")
        raise typer.Exit


@app.callback(epilog=_EPILOG)
def encore(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings file instead of ./encore.toml."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """A streaming feature store and ranking platform.

    Start with `encore demo`: the whole flow on real data, in one process tree, on this machine.
    """
    context.obj = Invocation(config)


app.command()(demo.demo)
app.command(epilog=local.UP_EPILOG)(local.up)
app.command(epilog=feature.INIT_EPILOG)(feature.init)
app.command(epilog=feature.PLAN_EPILOG)(feature.plan)
app.command(epilog=feature.APPLY_EPILOG)(feature.apply)
app.command(epilog=feature.LOAD_EPILOG)(feature.load)
app.command(epilog=backfill.BACKFILL_EPILOG)(backfill.backfill)
app.command(epilog=backfill.REBUILD_EPILOG)(backfill.rebuild)
app.add_typer(features.features)
app.add_typer(generations.generations)
app.add_typer(models.models)
app.command(epilog=contract.CONTRACTS_EPILOG)(contract.contracts)
app.command(epilog=replay.REPLAY_EPILOG)(replay.replay)
app.command(epilog=send.SEND_EPILOG)(send.send)
app.add_typer(stream.stream_group)
app.add_typer(topics.topics)
app.command()(stream.items)
app.command()(stream.sink)
app.command()(stream.ship)
app.command(epilog=serving.SERVE_EPILOG)(serving.serve)
app.command()(serving.cache)
app.command(epilog=model.TRAIN_EPILOG)(model.train)
app.command()(diagnose.doctor)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(given, prog_name="encore")
    except EncoreError as error:
        say_error(error, as_json="--json" in given)
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
