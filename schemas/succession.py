"""Which topics the actions lie in, one after the other: the record of moves to new topics.

A topic's partition count never changes, so more partitions are another topic. The record is one
JSON text in the store, changed by compare-and-set on its version:

    {"format": 1, "topics": [
        {"name": "actions", "partitions": 2,
         "end": {"topic_id": "…", "offsets": {"0": 812, "1": 790}, "final": true}},
        {"name": "actions.2", "partitions": 3, "end": null}]}

Producers write to the last topic. Readers read a topic once the one before it has ended for good
and all of that is stored. Where there is no record there is one topic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from schemas.errors import StreamError

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class End:
    """Where a topic ends, in the log with that id. final: offsets are those of the end records that
    lie in the log, {partition: offset}; before, they are those from which on such a record lies,
    and empty as long as none may have been sent."""

    topic_id: str
    offsets: dict[int, int]
    final: bool


@dataclass(frozen=True, slots=True)
class Life:
    """One topic. end: None as long as nobody began to end it."""

    name: str
    partitions: int
    end: End | None = None

    @property
    def ended(self) -> bool:
        """Its end is in the log."""
        return self.end is not None and self.end.final


@dataclass(frozen=True, slots=True)
class Succession:
    """Topics, oldest first, at least one."""

    topics: tuple[Life, ...]

    @classmethod
    def of(cls, topic: str, partitions: int) -> Self:
        """A topic that was never moved."""
        return cls((Life(topic, partitions),))

    @property
    def newest(self) -> Life:
        """Where producers write."""
        return self.topics[-1]

    @property
    def open(self) -> tuple[Life, ...]:
        """The topics that may be read: all up to the first that has not ended."""
        count = next((at for at, each in enumerate(self.topics) if not each.ended), None)
        return self.topics if count is None else self.topics[: count + 1]

    def grown(self, name: str, partitions: int) -> Self:
        """The succession with a further topic."""
        return replace(self, topics=(*self.topics, Life(name, partitions)))

    def with_end(self, name: str, end: End | None) -> Self:
        """The succession where that topic has this end, or none."""
        found = (replace(each, end=end) if each.name == name else each for each in self.topics)
        return replace(self, topics=tuple(found))


def dump_succession(succession: Succession) -> str:
    """The stored text."""
    topics = [
        {
            "name": each.name,
            "partitions": each.partitions,
            "end": None if each.end is None else _end_data(each.end),
        }
        for each in succession.topics
    ]
    return json.dumps({"format": FORMAT, "topics": topics})


def load_succession(text: str | None, topic: str, partitions: int, where: str) -> Succession:
    """The inverse; None is the time before any move, when there is `topic` with `partitions`.

    Raises StreamError for any other text.
    """
    if text is None:
        return Succession.of(topic, partitions)
    try:
        held: dict[str, Any] = json.loads(text)
        if held["format"] != FORMAT or not held["topics"]:
            raise ValueError
        return Succession(tuple(_life(each) for each in held["topics"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StreamError(
            where,
            required=f"a record of topics of format {FORMAT}",
            got=repr(text[:60]),
            do="use the version of encore that wrote it, or take it from a backup of the store",
        ) from None


def _end_data(end: End) -> dict[str, object]:
    offsets = {str(partition): at for partition, at in sorted(end.offsets.items())}
    return {"topic_id": end.topic_id, "offsets": offsets, "final": end.final}


def _life(held: dict[str, Any]) -> Life:
    end = held["end"]
    if end is not None:
        offsets = {int(partition): int(at) for partition, at in end["offsets"].items()}
        end = End(str(end["topic_id"]), offsets, bool(end["final"]))
    return Life(str(held["name"]), int(held["partitions"]), end)
