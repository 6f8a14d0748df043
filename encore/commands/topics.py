"""`encore topics show | grow | end | carry`: moving the actions to a topic with more partitions."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from encore.context import JsonOption, invocation

if TYPE_CHECKING:
    from schemas.succession import Succession
    from store.base import AsyncRowStore
    from streams.config import StreamConfig

T = TypeVar("T")

TOPICS_EPILOG = """\b
Examples:
  encore topics show
  encore topics grow --partitions 8     a new topic; switch the producers to it
  encore topics end                     then end the old one: readers go on by themselves
  encore topics carry                   what was still written behind the end
"""

topics = typer.Typer(
    name="topics",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Show the topics of actions, move to a new one.",
    epilog=TOPICS_EPILOG,
)


@topics.command("show")
def show(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show the topics, oldest first, and what lies behind their ends.

    `open` is read; `waiting` not before the one before it has ended; of an `ended` one readers
    still lack something, a `done` one is stored and may be deleted once it is archived.
    """
    from encore.output import put_json, put_table
    from streams.carrying import behind_ends
    from streams.growing import unfinished
    from streams.moving import read_succession

    async def work(store: AsyncRowStore, config: StreamConfig) -> list[dict[str, object]]:
        found = await read_succession(store, config)
        left = await unfinished(store, config, found)
        names = [each.name for each in found.topics]
        lines: list[dict[str, object]] = []
        for number, life in enumerate(found.topics):
            state = "open" if life in found.open else "waiting"
            if life.ended:
                state = "ended" if left is not None and number >= names.index(left) else "done"
            behind = sum((await behind_ends(config, life)).values()) if life.ended else 0
            shown = {"topic": life.name, "partitions": life.partitions, "state": state}
            lines.append({**shown, "behind its end": behind})
        return lines

    lines = _with_store(context, work)
    if as_json:
        put_json(lines)
    else:
        put_table(tuple(lines[0]), [tuple(map(str, line.values())) for line in lines])


@topics.command("grow")
def grow(
    context: typer.Context,
    partitions: Annotated[int, typer.Option(min=1, metavar="N", help="Of the new topic.")],
    as_json: JsonOption = False,
) -> None:
    """Make the next topic. Producers that start from now on write to it; nobody reads it yet."""
    from streams.growing import grow as grown

    _put(_with_store(context, lambda store, config: grown(store, config, partitions)), as_json)


@topics.command("end")
def end(
    context: typer.Context,
    again: Annotated[
        bool,
        typer.Option("--again", help="The store was wiped: look for the end given before."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """End the topic before the newest. Run it once no producer writes to it any more.

    Puts an end record into each partition. Workers read up to there, and once all of that is stored
    go on with the next topic, without a restart.
    """
    from streams.growing import end as ended

    _put(_with_store(context, lambda store, config: ended(store, config, again)), as_json)


@topics.command("carry")
def carry(context: typer.Context, as_json: JsonOption = False) -> None:
    """Carry on what was written behind a topic's end.

    It goes into the newest topic, each action once.
    """
    from encore.output import put, put_facts, put_json
    from streams.carrying import carry as carried

    done = _with_store(context, lambda store, config: carried(store, config, _now_ms))
    facts = {"carried": done.sent, "carried before": done.before, "left": len(done.refused)}
    if as_json:
        put_json({**facts, "refused": done.refused})
        return
    for place, why in done.refused.items():
        put(f"{place} left: {why}")
    put_facts(facts)


def _put(found: Succession, as_json: bool) -> None:
    from dataclasses import asdict

    from encore.output import put, put_json

    if as_json:
        put_json([asdict(each) for each in found.topics])
        return
    for life in found.topics:
        put(f"{life.name}: {life.partitions} partitions{', ended' if life.ended else ''}")


def _with_store(
    context: typer.Context, work: Callable[[AsyncRowStore, StreamConfig], Awaitable[T]]
) -> T:
    from encore import loops
    from encore.wiring import stream_config
    from store.redis_store import AsyncRedisRowStore

    settings = invocation(context).connected

    async def run() -> T:
        async with AsyncRedisRowStore(settings.store_url) as store:
            return await work(store, stream_config(settings))

    return loops.run(run)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
