"""What the helpers take, for who declares without an editor that says it.

A wrong argument is refused by the line that has it, in the words of a declaration, and not by
whatever it happens to break further down.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

from schemas.errors import DeclarationError

Made = TypeVar("Made")


def duration(value: object, where: str) -> timedelta:
    """The value itself. Raises DeclarationError for what is no duration."""
    if isinstance(value, timedelta):
        return value
    raise DeclarationError(
        where,
        required="a duration",
        got=repr(value),
        do="write it as 5 * MINUTE, HOUR, 7 * DAY or timedelta(…)",
    )


def instance(value: Any, kind: type[Made], where: str, required: str) -> Made:
    """The value itself. required: how such a thing is made. Raises DeclarationError for another."""
    if isinstance(value, kind):
        return value
    raise DeclarationError(where, required=required, got=repr(value))


def not_a_number(value: object, where: str) -> DeclarationError:
    """The refusal of a transform's parameter that is neither number nor text."""
    spans = isinstance(value, timedelta)
    return DeclarationError(
        where,
        required="numbers or strings",
        got=repr(value),
        do="ages are milliseconds: one day is 86_400_000" if spans else "",
    )
