"""What declarations may name, as types: editors complete them, mypy refuses the rest.

`tests/catalog/test_words.py` holds them to what an action has.
"""

from __future__ import annotations

from typing import Literal

# fmt: off
#: What a user did; "*" is any of it.
Action = Literal[
    "impression", "play", "finish", "click", "long_view", "like", "follow", "comment", "share",
    "dislike", "profile", "*",
]
#: A column of an action; `tag` is the first of its item's tags.
Column = Literal[
    "user", "item", "author", "music", "value", "position", "scene", "time_ms", "tag",
]
#: A column of a sequence; `age_ms` is how long ago each entry was.
SequenceColumn = Literal[
    "user", "item", "author", "music", "value", "position", "scene", "time_ms", "tag", "age_ms",
]
#: A column of an action of a type.
ActionColumn = Literal[
    "impression.user", "impression.item", "impression.author", "impression.music",
    "impression.value", "impression.position", "impression.scene", "impression.time_ms",
    "impression.tag", "impression.age_ms", "play.user", "play.item", "play.author", "play.music",
    "play.value", "play.position", "play.scene", "play.time_ms", "play.tag", "play.age_ms",
    "finish.user", "finish.item", "finish.author", "finish.music", "finish.value",
    "finish.position", "finish.scene", "finish.time_ms", "finish.tag", "finish.age_ms",
    "click.user", "click.item", "click.author", "click.music", "click.value", "click.position",
    "click.scene", "click.time_ms", "click.tag", "click.age_ms", "long_view.user", "long_view.item",
    "long_view.author", "long_view.music", "long_view.value", "long_view.position",
    "long_view.scene", "long_view.time_ms", "long_view.tag", "long_view.age_ms", "like.user",
    "like.item", "like.author", "like.music", "like.value", "like.position", "like.scene",
    "like.time_ms", "like.tag", "like.age_ms", "follow.user", "follow.item", "follow.author",
    "follow.music", "follow.value", "follow.position", "follow.scene", "follow.time_ms",
    "follow.tag", "follow.age_ms", "comment.user", "comment.item", "comment.author",
    "comment.music", "comment.value", "comment.position", "comment.scene", "comment.time_ms",
    "comment.tag", "comment.age_ms", "share.user", "share.item", "share.author", "share.music",
    "share.value", "share.position", "share.scene", "share.time_ms", "share.tag", "share.age_ms",
    "dislike.user", "dislike.item", "dislike.author", "dislike.music", "dislike.value",
    "dislike.position", "dislike.scene", "dislike.time_ms", "dislike.tag", "dislike.age_ms",
    "profile.user", "profile.item", "profile.author", "profile.music", "profile.value",
    "profile.position", "profile.scene", "profile.time_ms", "profile.tag", "profile.age_ms",
    "*.user", "*.item", "*.author", "*.music", "*.value", "*.position", "*.scene", "*.time_ms",
    "*.tag", "*.age_ms",
]
# fmt: on
