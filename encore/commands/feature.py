"""`encore apply`, `encore load`, `encore features`: from declarations to values."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from encore.context import JsonOption, invocation

FEATURES_EPILOG = """\b
Examples:
  encore features user_id=42
  encore features user_id=42 video_id=7 --json
  encore features user_id=42 --view user_activity --now-ms 1651708800000
"""


def features(
    context: typer.Context,
    entities: Annotated[
        list[str], typer.Argument(metavar="KEY=ID...", help="Join keys, such as user_id=42.")
    ],
    view: Annotated[str | None, typer.Option(help="This view alone.")] = None,
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
    clock_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    with RedisRowStore(invocation(context).connected.store_url) as store:
        views = views_of(published_plan(store), ids, view)
        readings = read_features(store, views, ids, clock_ms)
    if as_json:
        put_json({"now_ms": clock_ms, "views": [asdict(reading) for reading in readings]})
        return
    rows = [
        (reading.view, name, "-" if value is None else str(value), reading.status)
        for reading in readings
        for name, value in reading.values.items()
    ]
    put_table(("view", "feature", "value", "row"), rows)
