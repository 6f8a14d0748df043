"""`encore apply`, `encore load`, `encore features`: from declarations to values."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from encore.context import Invocation, JsonOption, invocation

APPLY_EPILOG = """\b
Examples:
  encore apply                      compile, and publish to the store that is set or running
  encore apply --no-publish         compile and write plan.lock.json, touch no store
"""
LOAD_EPILOG = """\b
Examples:
  encore load
  encore load --view users
  encore load --kuairand examples/kuairand
"""
FEATURES_EPILOG = """\b
Examples:
  encore features user_id=42
  encore features user_id=42 video_id=7 --json
  encore features user_id=42 --view user_activity --now-ms 1651708800000
"""


def apply(
    context: typer.Context,
    publish: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Publish the plan to the store.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Compile the feature repo into the plan and publish it.

    Runs Feast's apply, writes plan.lock.json beside the declarations, and hands the plan to the
    store, from which running workers and services take it over. What cannot be compiled is refused
    before anything is written. Without changes nothing is written.
    """
    from encore.output import put_facts, put_json
    from store.redis_store import RedisRowStore

    call = invocation(context)
    url = _store_url(call) if publish else None
    from catalog.apply import apply as apply_repo  # Feast: seconds, so after what may be refused

    if url is None:
        result = apply_repo(call.settings.repo)
    else:
        with RedisRowStore(url) as store:
            result = apply_repo(call.settings.repo, store)
    plan, parent = result.plan, result.parent
    views = [f"{view.name}@{view.generation}" for view in plan.views]
    services = {service.name: service.fingerprint for service in plan.services}
    if as_json:
        put_json(
            {
                "version": plan.version,
                "parent": parent.version if parent else None,
                "changed": result.changed,
                "published": result.published,
                "lock": result.lock,
                "views": views,
                "services": services,
            }
        )
        return
    put_facts(
        {
            "plan": f"version {plan.version}, {'changed' if result.changed else 'as before'}",
            "lock": result.lock,
            "views": ", ".join(views),
            "services": ", ".join(f"{name} ({mark})" for name, mark in services.items()),
            "store": _publication(url, result.published),
        }
    )


def _store_url(call: Invocation) -> str | None:
    """The store to publish to; None when none is set and no local stack runs."""
    from encore.settings import LOCAL
    from encore.stack_file import running_stack

    if call.settings.store_url != LOCAL:
        return call.settings.store_url
    stack = running_stack(call.settings.runs)
    return stack.store_url if stack else None


def _publication(url: str | None, published: bool) -> str:
    from encore.settings import masked

    if url is None:
        return "not published: no store is set and no local stack runs"
    return f"{'published to' if published else 'as before:'} {masked(url)}"


def load(
    context: typer.Context,
    view: Annotated[str | None, typer.Option(help="This batch view alone.")] = None,
    kuairand: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="First write the sources from KuaiRand's tables in DIR.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load batch views from their Parquet sources into the store.

    Sources lie below data_dir. A stored row that is newer than the source's stays.
    """
    from dataclasses import asdict

    from encore.load import load_views
    from encore.output import put_json, put_table
    from encore.progress import Bars
    from store.redis_store import RedisRowStore

    settings = invocation(context).connected
    if kuairand is not None:
        from encore.kuairand import write_sources

        write_sources(kuairand, settings.data_dir / "sources")
    with RedisRowStore(settings.store_url) as store, Bars() as bars:
        done = list(load_views(settings, store, view=view, note=bars.update))
    if as_json:
        put_json([asdict(each) for each in done])
        return
    header = ("view", "read", "entities", "written", "equal", "newer")
    put_table(header, [tuple(str(getattr(each, name)) for name in header) for each in done])


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
