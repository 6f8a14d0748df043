"""`encore features list | show | get | watch`: the published features, and an entity's values."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from encore.context import JsonOption, invocation

if TYPE_CHECKING:
    from encore.describe import CrossPage, Page

FEATURES_EPILOG = """\b
Examples:
  encore features list
  encore features show clicks_1h
  encore features user_id=42                     the same as: features get user_id=42
  encore features get user_id=42 video_id=7 --json
  encore features get user_id=42 --view user_activity --now-ms 1651708800000
  encore features watch user_id=42
"""

EntitiesArgument = Annotated[
    list[str], typer.Argument(metavar="KEY=ID...", help="Join keys, such as user_id=42.")
]
ViewOption = Annotated[str | None, typer.Option(help="This view alone.")]


class GetByDefault(TyperGroup):
    """A group whose `get` may be left out: `features user_id=42`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `get` where the first word is no command but an entity is named."""
        if args and args[0] not in self.commands and any("=" in word for word in args):
            args = ["get", *args]
        return super().parse_args(ctx, args)


features = typer.Typer(
    name="features",
    cls=GetByDefault,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Show published features, and an entity's values.",
    epilog=FEATURES_EPILOG,
)


@features.command("list")
def list_features(
    context: typer.Context, view: ViewOption = None, as_json: JsonOption = False
) -> None:
    """List the features of the published plan."""
    from dataclasses import asdict

    from encore.describe import all_features
    from encore.lookup import published_plan
    from encore.output import put_json, put_table
    from store.redis_store import RedisRowStore

    with RedisRowStore(invocation(context).stored.store_url) as store:
        found = all_features(published_plan(store), view)
    if as_json:
        put_json([asdict(each) for each in found])
        return
    rows = [
        (each.name, f"@{each.generation}", each.type, ", ".join(each.services) or "-", each.of)
        for each in found
    ]
    put_table(("feature", "rows", "type", "services", "of"), rows)


@features.command("show")
def show(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="view.feature, service.cross, or either's last.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show one feature or cross: what it is of, and who uses it.

    NAME is view.feature, or the feature where no other view has one of that name; or service.cross,
    or the cross.
    """
    from dataclasses import asdict

    from encore.describe import Page, describe, describe_cross
    from encore.lookup import published_plan
    from encore.output import put_facts, put_json
    from store.redis_store import RedisRowStore

    with RedisRowStore(invocation(context).stored.store_url) as store:
        plan = published_plan(store)
    cross = describe_cross(plan, name)
    page = describe(plan, name) if cross is None else cross
    if as_json:
        put_json(asdict(page))
        return
    put_facts(_facts(page) if isinstance(page, Page) else _cross_facts(page))


def _cross_facts(page: CrossPage) -> dict[str, str]:
    whose = {"pair": "each candidate beside the user", "item": "each candidate"}
    return {
        "cross": page.name,
        "of": page.of,
        "slot": f"of {whose.get(page.scope, 'the user')}: {page.ids}, table {page.table}",
    }


def _facts(page: Page) -> dict[str, str]:
    summary = page.summary
    facts = {
        "feature": summary.name,
        "type": summary.type,
        "of": f"{summary.of}; {page.source}",
        "rows": f"{page.key}, of the {summary.entity}; ttl {page.ttl}",
        "stored": ", ".join(page.stored),
    }
    for slot in page.slots:
        words = f"{slot.side} slot of {slot.service}: {slot.ids}, table {slot.table}"
        facts[f"slot {slot.service}"] = words
    facts |= {f"cross {cross.name}": cross.of for cross in page.crosses}
    return facts


@features.command("get")
def get(
    context: typer.Context,
    entities: EntitiesArgument,
    view: ViewOption = None,
    now_ms: Annotated[
        int | None, typer.Option(help="Clock of the windows, ms since 1970. Default: now.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show an entity's features as a request would see them."""
    from dataclasses import asdict

    from encore.lookup import parse_entities, published_plan, read_features, views_of
    from encore.output import put_json, put_table
    from store.redis_store import RedisRowStore

    ids = parse_entities(entities)
    clock_ms = _now_ms() if now_ms is None else now_ms
    with RedisRowStore(invocation(context).stored.store_url) as store:
        views = views_of(published_plan(store), ids, view)
        readings = read_features(store, views, ids, clock_ms)
    if as_json:
        put_json({"now_ms": clock_ms, "views": [asdict(reading) for reading in readings]})
        return
    rows = [
        (reading.view, name, _shown(value), reading.status)
        for reading in readings
        for name, value in reading.values.items()
    ]
    put_table(("view", "feature", "value", "row"), rows)


@features.command("watch")
def watch(
    context: typer.Context,
    entities: EntitiesArgument,
    view: ViewOption = None,
    every: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 1.0,
    looks: Annotated[
        int | None, typer.Option(min=1, help="End after so many looks. Default: at Ctrl-C.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show an entity's features as they change.

    The first look shows all, each later one what is different; with --json one object a line.
    """
    import json
    from dataclasses import asdict
    from itertools import islice

    from encore.lookup import parse_entities
    from encore.output import put
    from encore.watching import watch as changes
    from store.redis_store import RedisRowStore

    ids = parse_entities(entities)
    with RedisRowStore(invocation(context).stored.store_url) as store:
        for number, found in enumerate(islice(changes(store, ids, view, _now_ms), looks)):
            for each in found:
                before = "" if number == 0 else f"{_shown(each.before)} → "
                line = f"{_hour(each.time_ms)}  {each.feature}  {before}{_shown(each.after)}"
                put(json.dumps(asdict(each)) if as_json else line)
            if looks is None or number + 1 < looks:
                time.sleep(every)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _hour(time_ms: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_ms / 1_000))


def _shown(value: object) -> str:
    """For people: `-` for what is not known, also within a list."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return "-" if value is None else str(value)
