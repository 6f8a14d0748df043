"""`encore init`, `plan`, `apply`, `load`: from declarations to rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encore.context import Invocation, JsonOption, invocation

if TYPE_CHECKING:
    from catalog.apply import ApplyResult

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
INIT_EPILOG = """\b
Examples:
  encore init songs && cd songs && encore up
"""
PLAN_EPILOG = """\b
Examples:
  encore plan                       what `encore apply` would change
  encore plan --json
"""


TakeOverOption = Annotated[
    bool,
    typer.Option("--take-over", help="Build on the plan in the store, not on plan.lock.json."),
]


def init(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
) -> None:
    """Write a new project: settings, features, a tiny source.

    Its declarations compile as they are: `encore up` in DIR runs it, `encore load` fills in the
    songs.
    """
    from encore.output import put
    from encore.starter import create_project

    for path in create_project(directory):
        put(str(path))


def plan(
    context: typer.Context, take_over: TakeOverOption = False, as_json: JsonOption = False
) -> None:
    """Show what `apply` would change, and change nothing.

    Compares the feature repo with the published plan; without a store, with plan.lock.json. Says
    which features, generations and services change, and which live models that retires.
    """
    from encore.evolution import as_data, told
    from encore.output import put, put_json
    from predictor.live import live_models
    from store.redis_store import RedisRowStore

    call = invocation(context)
    models, url = live_models(call.settings.packages), _store_url(call, take_over)
    from catalog.apply import plan_repo  # Feast: seconds, so after what may be refused

    if url is None:
        found = plan_repo(call.settings.repo).difference
    else:
        with RedisRowStore(url) as store:
            found = plan_repo(call.settings.repo, store, take_over).difference
    if as_json:
        put_json(as_data(found, models))
        return
    for line in told(found, models):
        put(line)


def apply(
    context: typer.Context,
    publish: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Publish the plan to the store.")
    ] = True,
    retire_models: Annotated[
        bool, typer.Option("--retire-models", help="Remove slots though live models use them.")
    ] = False,
    take_over: TakeOverOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compile the feature repo into the plan and publish it.

    Runs Feast's apply, writes plan.lock.json beside the declarations, and hands the plan to the
    store, from which running workers and services take it over. What cannot be compiled is refused
    before anything is written, and so is removing a slot that a live model uses. Without changes
    nothing is written.
    """
    from encore.evolution import as_data, guard, told
    from encore.output import put, put_facts, put_json
    from predictor.live import live_models
    from store.redis_store import RedisRowStore

    if take_over and not publish:
        raise typer.BadParameter("takes the plan of a store", param_hint="--take-over")
    call = invocation(context)
    url = _store_url(call, take_over) if publish else None
    models = live_models(call.settings.packages)
    review = guard(models, retire=retire_models)
    from catalog.apply import apply as apply_repo  # Feast: seconds, so after what may be refused

    if url is None:
        result = apply_repo(call.settings.repo, review=review)
    else:
        with RedisRowStore(url) as store:
            result = apply_repo(call.settings.repo, store, review, take_over=take_over)
    if as_json:
        put_json(_applied(result) | {"difference": as_data(result.difference, models)})
        return
    for line in told(result.difference, models):
        put(line)
    to = _publication(url, result.published) if publish else "not published"
    put_facts(_facts(result) | {"store": to})


def _applied(result: ApplyResult) -> dict[str, object]:
    """For programs."""
    plan, parent = result.plan, result.parent
    return {
        "version": plan.version,
        "parent": parent.version if parent else None,
        "changed": result.changed,
        "published": result.published,
        "lock": result.lock,
        "views": [f"{view.name}@{view.generation}" for view in plan.views],
        "services": {service.name: service.fingerprint for service in plan.services},
    }


def _facts(result: ApplyResult) -> dict[str, str]:
    """For people."""
    plan = result.plan
    services = [f"{service.name} ({service.fingerprint})" for service in plan.services]
    return {
        "plan": f"version {plan.version}, {'changed' if result.changed else 'as before'}",
        "lock": str(result.lock),
        "views": ", ".join(f"{view.name}@{view.generation}" for view in plan.views),
        "services": ", ".join(services),
    }


def _store_url(call: Invocation, required: bool) -> str | None:
    """The store to publish to; None when none is set and no local stack runs.

    Raises SettingsError where one is required then.
    """
    from encore.settings import LOCAL
    from encore.stack_file import running_stack

    if required:
        return call.stored.store_url
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

    settings = invocation(context).stored
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
