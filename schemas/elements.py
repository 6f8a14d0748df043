"""How a batch Array with a transform rests: each element a field of its own, counted from 1."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

_ELEMENT: Final = re.compile(r"(.+)_([1-9][0-9]{0,3})")


def element_name(column: str, index: int) -> str:
    """The field of an Array's element `index`, counted from 0.

    >>> element_name("tag", 0)
    'tag_1'
    """
    return f"{column}_{index + 1}"


def element_of(name: str, columns: Collection[str]) -> tuple[str, int] | None:
    """The inverse: (column, index) of a field, None where it is no element of these columns.

    >>> element_of("tag_3", ["tag"]), element_of("tag_3", ["tag_3"]), element_of("age", ["tag"])
    (('tag', 2), None, None)
    """
    found = _ELEMENT.fullmatch(name)
    if name in columns or found is None or found[1] not in columns:
        return None
    return found[1], int(found[2]) - 1
