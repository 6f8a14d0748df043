"""The published schemas: what readers and writers in other languages are generated from.

    action.fbs          action messages
    rank_record.fbs     messages of the rank log
    rows/<view>.fbs     the stored rows of each view of the plan
    open_inference.proto, openapi.json   the ranking service, over gRPC and over HTTP

Each file is made from its one source: the schemas of `schemas/fbs`, the layouts of the plan, and
what the service itself is made of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Final

from predictor.grpc_messages import inference_proto
from predictor.openapi import document
from schemas.errors import PlanError
from schemas.layout import layout_of
from schemas.plan import Plan

FIXED: Final = ("action.fbs", "rank_record.fbs")
ROWS: Final = "rows"
#: How a row schema begins: files that do not are never removed.
ROW_SCHEMA_START: Final = "// Rows of the view "


@dataclass(frozen=True, slots=True)
class Difference:
    """What a directory has and the plan does not, and the other way round; relative paths.

    changed: missing, or with another text. left: row schemas of views that are gone.
    """

    changed: tuple[str, ...]
    left: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.left)


def schema_files(plan: Plan) -> dict[str, str]:
    """Relative path -> text of each published schema. Raises PlanError."""
    fixed = files("schemas") / "fbs"
    found = {name: (fixed / name).read_text("utf-8") for name in FIXED}
    found["open_inference.proto"] = inference_proto()
    found["openapi.json"] = json.dumps(document(version("encore")), indent=1) + "\n"
    for view in plan.views:
        found[f"{ROWS}/{view.name}.fbs"] = layout_of(view).fbs
    return found


def compare(directory: Path, plan: Plan) -> Difference:
    """How the schemas in `directory` differ from the plan's; it need not exist."""
    wanted = schema_files(plan)
    changed = [name for name, text in wanted.items() if _text(directory / name) != text]
    left = [
        f"{ROWS}/{path.name}"
        for path in sorted((directory / ROWS).glob("*.fbs"))
        if f"{ROWS}/{path.name}" not in wanted
        and path.read_text("utf-8").startswith(ROW_SCHEMA_START)
    ]
    return Difference(tuple(changed), tuple(left))


def write_schemas(directory: Path, plan: Plan) -> Difference:
    """Makes `directory` hold the plan's schemas; other files there stay. Returns what it changed.

    Row schemas of views that are gone are removed.
    """
    difference, wanted = compare(directory, plan), schema_files(plan)
    (directory / ROWS).mkdir(parents=True, exist_ok=True)
    for name in difference.changed:
        (directory / name).write_text(wanted[name], "utf-8")
    for name in difference.left:
        (directory / name).unlink()
    return difference


def require_current(directory: Path, plan: Plan) -> None:
    """Raises PlanError where the schemas in `directory` are not the plan's."""
    difference = compare(directory, plan)
    if difference:
        parts = [f"{name} missing or different" for name in difference.changed]
        parts += [f"{name} of no view" for name in difference.left]
        raise PlanError(
            str(directory),
            required=f"the schemas of plan version {plan.version}",
            got=", ".join(parts),
            do=f"run `encore contracts {directory}`",
        )


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.is_file() else None
