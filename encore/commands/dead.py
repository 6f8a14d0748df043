"""`encore stream dead list | show | redrive`: messages that were refused, and their return."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from encore.context import JsonOption, invocation

if TYPE_CHECKING:
    from encore.settings import Settings
    from streams.dead_letters import Letter
    from streams.desk import Desk

T = TypeVar("T")

DEAD_EPILOG = """\b
Examples:
  encore stream dead list
  encore stream dead show 17
  encore stream dead redrive 17 18       put these back, each once
  encore stream dead redrive --all
"""
TopicOption = Annotated[
    Literal["actions", "actions.by-item", "rank-log"],
    typer.Option(help="The topic whose messages were refused."),
]

dead = typer.Typer(
    name="dead",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="List, show and put back refused messages.",
    epilog=DEAD_EPILOG,
)


@dead.command("list")
def list_letters(
    context: typer.Context,
    topic: TopicOption = "actions",
    last: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List refused messages, the newest last, and which were put back."""
    from encore.output import put, put_json, put_table

    async def work(desk: Desk) -> tuple[list[Letter], frozenset[int]]:
        return await desk.last(last), await desk.put_back()

    letters, back = _at_desk(context, topic, work)
    if as_json:
        put_json([_data(letter) | {"put_back": letter.offset in back} for letter in letters])
    elif not letters:
        put("none")
    else:
        said = {True: "yes", False: "no"}
        rows = [
            (str(at := each.offset), said[at in back], each.source, each.code, each.reason)
            for each in letters
        ]
        put_table(("letter", "put back", "source", "code", "reason"), rows)


@dead.command("show")
def show(
    context: typer.Context,
    offset: Annotated[int, typer.Argument(metavar="LETTER", min=0, help="As `list` names it.")],
    topic: TopicOption = "actions",
    as_json: JsonOption = False,
) -> None:
    """Show one refused message: why, its headers, its bytes."""
    from encore.output import put, put_facts, put_json

    async def work(desk: Desk) -> list[Letter]:
        return await desk.some([offset])

    (letter,) = _at_desk(context, topic, work)
    if as_json:
        put_json(_data(letter))
        return
    headers = {f"header {name}": repr(value)[1:] for name, value in letter.headers.items()}
    facts = {"letter": letter.offset, "source": letter.source, "code": letter.code}
    key = "null" if letter.key is None else repr(letter.key)[1:]
    put_facts({**facts, "reason": letter.reason, "key": key, **headers})
    if letter.left_out_bytes:
        put(f"{letter.left_out_bytes} bytes, too many for a letter: not in it")
        return
    for line in _dump(letter.value):
        put(line)


@dead.command("redrive")
def redrive(
    context: typer.Context,
    offsets: Annotated[
        list[int] | None, typer.Argument(metavar="[LETTER]", help="As `list` names them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are in the topic.")] = False,
    topic: TopicOption = "actions",
    as_json: JsonOption = False,
) -> None:
    """Put refused messages back into their topic, each once.

    Bytes, key and headers are as they were. A letter that was put back is never put back again,
    also by a run after one that died. What would be refused again is left, and told.
    """
    from dataclasses import asdict

    from encore.output import put, put_facts, put_json
    from schemas.errors import SettingsError
    from streams.dead_letters import Redriven

    if every == bool(offsets):
        raise SettingsError(
            "stream.dead.redrive", required="letters, or --all", got="both" if every else "neither"
        )

    async def work(desk: Desk) -> Redriven:
        return await desk.redrive(offsets)

    done = _at_desk(context, topic, work)
    if as_json:
        put_json(asdict(done))
        return
    for offset, why in done.refused.items():
        put(f"{offset} left: {why}")
    facts = {
        "put back": len(done.sent),
        "put back before": len(done.before),
        "left": len(done.refused),
    }
    put_facts(facts)


def _at_desk(context: typer.Context, topic: str, work: Callable[[Desk], Awaitable[T]]) -> T:
    from encore import loops
    from encore.wiring import stream_config
    from store.redis_store import AsyncRedisRowStore
    from streams.desk import Desk
    from streams.moving import config_of, read_succession

    settings: Settings = invocation(context).connected

    async def run() -> T:
        async with AsyncRedisRowStore(settings.store_url) as store:
            first = stream_config(settings)
            succession = await read_succession(store, first)
            config = config_of(first, succession, len(succession.topics))
            newest = config.topic if topic == first.topic else topic
            async with Desk(config, store, newest, _now_ms) as desk:
                return await work(desk)

    return loops.run(run)


def _data(letter: Letter) -> dict[str, object]:
    return {
        "letter": letter.offset,
        "source": letter.source,
        "code": letter.code,
        "reason": letter.reason,
        "key": None if letter.key is None else letter.key.decode(errors="backslashreplace"),
        "headers": {k: v.decode(errors="backslashreplace") for k, v in letter.headers.items()},
        "value_hex": None if letter.value is None else letter.value.hex(),
        "left_out_bytes": letter.left_out_bytes,
    }


def _dump(value: bytes | None, most: int = 512) -> list[str]:
    """Text as text; other bytes 16 a line, the first `most`."""
    if value is None:
        return ["no value"]
    text = value[:most].decode(errors="replace")
    if text.isprintable():
        lines = [text]
    else:
        parts = (value[at : at + 16] for at in range(0, min(len(value), most), 16))
        lines = [f"{number * 16:6d}  {part.hex(' ')}" for number, part in enumerate(parts)]
    return [*lines, f"… {len(value)} bytes"] if len(value) > most else lines


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
