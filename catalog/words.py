"""What declarations may name, as types: editors complete them, mypy refuses the rest."""

from __future__ import annotations

from typing import Literal

Action = Literal[
    "impression",
    "play",
    "finish",
    "click",
    "long_view",
    "like",
    "follow",
    "comment",
    "share",
    "dislike",
    "profile",
    "*",
]
#: Columns of an action; `tag` is its first one.
ActionColumn = Literal[
    "user", "item", "author", "music", "value", "position", "scene", "time_ms", "tag"
]
#: Columns of a sequence; `age_ms` is how long ago each entry was.
SequenceColumn = Literal[
    "user", "item", "author", "music", "value", "position", "scene", "time_ms", "tag", "age_ms"
]
