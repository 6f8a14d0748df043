"""The tags that carry what Feast has no field for: the only place where they are spelled.

On a Field:        `encore.transform` JSON (see transforms.py), `encore.shares` "view:feature",
                   `encore.capacity` most elements of an Array, `encore.length` of a sequence slot.
On an Entity:      `encore.side` "user" or "item".
On a FeatureView:  `encore.skew_ms`, `encore.future_ms` of a streamed view.
On a FeatureService: `encore.crosses` JSON (see crosses.py), `encore.required` views,
                   commas between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

from schemas.errors import DeclarationError

PREFIX: Final = "encore."
TRANSFORM: Final = "encore.transform"
SHARES: Final = "encore.shares"
CAPACITY: Final = "encore.capacity"
LENGTH: Final = "encore.length"
SIDE: Final = "encore.side"
SKEW_MS: Final = "encore.skew_ms"
FUTURE_MS: Final = "encore.future_ms"
CROSSES: Final = "encore.crosses"
REQUIRED: Final = "encore.required"

FIELD_TAGS: Final = (TRANSFORM, SHARES, CAPACITY, LENGTH)
ENTITY_TAGS: Final = (SIDE,)
VIEW_TAGS: Final = (SKEW_MS, FUTURE_MS)
SERVICE_TAGS: Final = (CROSSES, REQUIRED)

_WHOLE: Final = re.compile(r"-?[0-9]{1,18}")


def check_known(tags: Mapping[str, str], known: tuple[str, ...], where: str) -> None:
    """Raises DeclarationError for an `encore.` tag that nothing reads; others are the user's."""
    for tag in sorted(tags):
        if tag.startswith(PREFIX) and tag not in known:
            near = get_close_matches(tag, known, n=1, cutoff=0.0)
            raise DeclarationError(
                f"{where}.tags",
                required=f"one of {', '.join(known)}",
                got=repr(tag),
                do=f"use {near[0]}, or a name that does not start with {PREFIX}",
            )


def integer(tags: Mapping[str, str], tag: str, where: str, *, low: int, default: int) -> int:
    """A tag's whole number, at least `low`; `default` where there is no such tag.

    Raises DeclarationError for any other text.
    """
    text = tags.get(tag)
    if text is None:
        return default
    name = tag.removeprefix(PREFIX)
    if not _WHOLE.fullmatch(text) or int(text) < low:
        raise DeclarationError(
            f"{where}.{name}", required=f"a whole number of at least {low}", got=text
        )
    return int(text)
