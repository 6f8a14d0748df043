"""`encore contracts`: the schemas that other languages read and write by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encore.context import JsonOption, invocation

CONTRACTS_EPILOG = """\b
Examples:
  encore contracts
  encore contracts --check
"""


def contracts(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", file_okay=False, help="Where they are kept.")
    ] = Path("contracts"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; end with 1 when they are not current.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish the schemas of messages and rows.

    Writes action.fbs, rank_record.fbs, rows/VIEW.fbs of each view of plan.lock.json, and
    open_inference.proto and openapi.json of the ranking service into DIR, for programs in other
    languages, and removes row schemas of views that are gone.
    """
    from catalog.lock import LOCK_NAME, require_lock
    from encore.contracts import compare, require_current, schema_files, write_schemas
    from encore.output import put_facts, put_json

    plan = require_lock(invocation(context).settings.repo / LOCK_NAME)
    if check:
        require_current(directory, plan)
    done = compare(directory, plan) if check else write_schemas(directory, plan)
    written, removed = done.changed, done.left
    schemas = list(schema_files(plan))
    if as_json:
        put_json({"plan": plan.version, "schemas": schemas, "written": written, "removed": removed})
        return
    put_facts(
        {
            "plan": f"version {plan.version}",
            "schemas": ", ".join(schemas),
            "written": ", ".join(written) or "none: current",
            "removed": ", ".join(removed) or "none",
        }
    )
