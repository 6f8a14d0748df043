"""`encore models list | prune`: the model packages on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from encore.context import JsonOption, invocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from predictor.shelf import Shelved

MODELS_EPILOG = """\b
Examples:
  encore models list
  encore models prune                  what it would remove
  encore models prune --keep 5 --yes
"""

models = typer.Typer(
    name="models",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="List model packages, and remove old ones.",
    epilog=MODELS_EPILOG,
)


@models.command("list")
def list_models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the packages in packages_dir, the newest of each kind first.

    `current` is what services take over; `damaged` cannot be read; `left` is what a trainer that
    died left behind.
    """
    from encore.output import put
    from predictor.shelf import shelf

    found = shelf(invocation(context).settings.packages, _now_ms())
    _put(found, as_json)
    if not found and not as_json:
        put("none; `encore train` makes them")


@models.command("prune")
def prune(
    context: typer.Context,
    keep: Annotated[int, typer.Option(metavar="N", help="The newest of each kind to keep.")] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them, and not just list.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove packages but the current and the newest.

    Without --yes nothing is removed. What CURRENT names stays, however old. Services may run
    meanwhile: they hold what they serve in memory.
    """
    from encore.output import put, say
    from predictor.shelf import prune_packages

    found = prune_packages(invocation(context).settings.packages, keep, _now_ms(), yes)
    _put(found, as_json)
    if not found and not as_json:
        put("nothing to remove")
    elif found and not yes:
        say("nothing was removed: --yes removes these")


def _put(found: Sequence[Shelved], as_json: bool) -> None:
    from dataclasses import asdict

    from encore.output import put_json, put_table

    if as_json:
        put_json([asdict(each) for each in found])
    elif found:
        put_table(
            ("kind", "package", "state", "trained (UTC)", "AUC", "bytes"), list(map(_row, found))
        )


def _row(each: Shelved) -> tuple[str, ...]:
    trained = time.strftime("%F %T", time.gmtime(each.trained_ms / 1_000))
    auc = "-" if each.auc is None else f"{each.auc:.4f}"
    day = trained if each.trained_ms else "-"
    return (each.kind, each.name, each.state, day, auc, str(each.bytes))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
