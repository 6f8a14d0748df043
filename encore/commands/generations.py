"""`encore generations list | prune`: rows of generations that no plan names any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from encore.context import JsonOption, invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from encore.generations import Held, Note
    from store.keyspace import RedisKeySpace
    from streams.config import StreamConfig

GENERATIONS_EPILOG = """\b
Examples:
  encore generations list
  encore generations prune user_activity          what it would remove
  encore generations prune user_activity --yes
  encore generations prune user_activity --generation 2 --yes
"""
PaceOption = Annotated[
    int, typer.Option("--keys-per-s", min=100, help="The most keys of the store to look at.")
]

generations = typer.Typer(
    name="generations",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="List and remove generations of rows.",
    epilog=GENERATIONS_EPILOG,
)


@generations.command("list")
def list_generations(
    context: typer.Context, keys_per_s: PaceOption = 20_000, as_json: JsonOption = False
) -> None:
    """List generations in the store, with rows and bytes.

    `published` is what is read, `staged` what a backfill fills, `old` what `prune` removes;
    `unknown` is named by no plan of this store, and left alone.
    """
    from encore.generations import list_generations as listed

    found = _walked(context, keys_per_s, listed)
    _put(found, as_json)


@generations.command("prune")
def prune(
    context: typer.Context,
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Its old generations.")],
    generation: Annotated[
        list[int] | None, typer.Option(metavar="N", help="This one alone; may be repeated.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them, and not just count.")] = False,
    keys_per_s: PaceOption = 20_000,
    as_json: JsonOption = False,
) -> None:
    """Remove a view's old generations: rows, floors and marks.

    Without --yes nothing is removed. What the published plan names is refused, and what a backfill
    fills. Workers, services and backfills may run meanwhile.
    """
    from encore.generations import Choice
    from encore.generations import prune as pruned
    from encore.output import put, say

    choice = Choice(view, tuple(generation or ()), yes)
    found = _walked(
        context, keys_per_s, lambda *place: pruned(place[0], place[1], choice, place[2])
    )
    _put(found, as_json)
    if not found and not as_json:
        put("nothing to remove")
    elif found and not yes:
        say("nothing was removed: --yes removes these")


def _walked(
    context: typer.Context,
    keys_per_s: int,
    work: Callable[[RedisKeySpace, StreamConfig, Note], list[Held]],
) -> list[Held]:
    from encore.progress import Bars
    from encore.wiring import stream_config
    from store.keyspace import RedisKeySpace

    config = stream_config(invocation(context).stored)
    with RedisKeySpace(config.store_url, keys_per_s) as store, Bars() as bars:
        return work(store, config, lambda done, total: bars.update("keys", done, total))


def _put(found: Sequence[Held], as_json: bool) -> None:
    from dataclasses import asdict

    from encore.output import put_json, put_table

    if as_json:
        put_json([asdict(each) for each in found])
    elif found:
        rows = [
            (
                each.view,
                f"@{each.generation}",
                each.state,
                *map(str, (each.rows, each.bytes, each.marks)),
            )
            for each in found
        ]
        put_table(("view", "generation", "state", "rows", "bytes", "marks"), rows)
