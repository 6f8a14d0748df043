"""What commands print: aligned text for people, JSON for programs.

Data goes to stdout; progress, notes and errors go to stderr, so that `--json` output can be piped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import EncoreError


def say(text: str) -> None:
    """One line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def put(text: str) -> None:
    """One line of data on stdout."""
    print(text, flush=True)


def put_json(data: Any) -> None:
    """One JSON document on stdout; paths become strings."""
    put(json.dumps(data, indent=2, default=_plain))


def put_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns aligned on stdout, the last one ragged.

    >>> put_table(("name", "value"), [("clicks_1h", "3"), ("n", "-")])
    name       value
    clicks_1h  3
    n          -
    """
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        put("  ".join(cells).rstrip())


def put_facts(facts: Mapping[str, object]) -> None:
    """`name  value` lines on stdout."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        put(f"{name.ljust(width)}  {value}")


def say_error(error: EncoreError, *, as_json: bool) -> None:
    """The error on stderr: one line, or one JSON object with its parts."""
    say(json.dumps({"error": error.parts()}) if as_json else f"encore: {error}")


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
