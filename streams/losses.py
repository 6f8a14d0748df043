"""Messages that neither a log nor the archive holds any more, and that somebody accepted to lack.

Two commands accept a loss, each with `--accept-loss`: the sink goes on behind what a topic dropped
before it was archived, and leaves a file that says so (`streams.archive`); a filling goes on
without what nobody holds, which is recorded with its generation before the first row is written.
`encore stream status` tells of both for as long as the files lie there and the generation is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from schemas.errors import PlanError, StreamError
from schemas.names import losses_keys
from schemas.plan import ViewPlan
from store.base import AsyncRowStore
from streams.amending import amend_text
from streams.archive import list_files
from streams.plans import published_plan, staged_plan

ARCHIVE: Final = "the archive"


@dataclass(frozen=True, slots=True, order=True)
class Loss:
    """Messages [first, next_offset) of one partition of one log.

    >>> loss = Loss("actions", "id", 0, 12, 40)
    >>> str(loss), loss.messages
    ('offsets 12 to 39 of actions/0', 28)
    """

    topic: str
    topic_id: str
    partition: int
    first: int
    next_offset: int

    @property
    def messages(self) -> int:
        """How many; nobody can tell how many actions were in them."""
        return self.next_offset - self.first

    def __str__(self) -> str:
        return f"offsets {self.first} to {self.next_offset - 1} of {self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A loss, and who goes on without: a generation of a view, or the archive."""

    whose: str
    loss: Loss

    def __str__(self) -> str:
        return f"{self.whose} is without {self.loss}, {self.loss.messages} messages: accepted"


async def record_losses(store: AsyncRowStore, view: ViewPlan, found: Iterable[Loss]) -> None:
    """Add these to what the generation is said to be without. Raises StoreError, StreamError."""
    wanted = set(found)
    keys = losses_keys(view.name, view.generation)

    def with_wanted(text: str | None) -> str | None:
        held = parse_losses(text, keys[0])
        if wanted <= set(held):
            return None
        return json.dumps([astuple(loss) for loss in sorted({*held, *wanted})])

    what = f"losses of {view.name}@{view.generation}"
    do = "see that one backfill runs, then run it again"
    await amend_text(store, keys, with_wanted, what, do)


async def recorded_losses(store: AsyncRowStore, view: ViewPlan) -> tuple[Loss, ...]:
    """What the generation was filled without. Raises StoreError, StreamError."""
    key, _ = losses_keys(view.name, view.generation)
    return parse_losses(await store.get_text(key), key)


def parse_losses(text: str | None, where: str) -> tuple[Loss, ...]:
    """Of the stored text; none where there is none. Raises StreamError for any other text.

    >>> parse_losses('[["actions", "id", 0, 12, 40]]', "losses")[0].messages
    28
    """
    if text is None:
        return ()
    try:
        return tuple(
            Loss(str(topic), str(topic_id), int(partition), int(first), int(after))
            for topic, topic_id, partition, first, after in json.loads(text)
        )
    except (ValueError, TypeError):
        raise StreamError(
            where,
            required="losses, [[topic, topic id, partition, first, next], ...]",
            got=repr(text[:80]),
            do="rebuild the view: `encore rebuild`",
        ) from None


def archived_losses(topic: str, root: Path) -> tuple[Loss, ...]:
    """What the sink archived as lost. root: of the topic's archive; of a rank log its requests."""
    found = []
    for directory in sorted(root.glob("topic_id=*/partition=*")):
        topic_id, partition = (each.partition("=")[2] for each in directory.parts[-2:])
        found += [
            Loss(topic, topic_id, int(partition), file.first, file.last + 1)
            for file in list_files(directory)
            if file.lost
        ]
    return tuple(found)


async def accepted_losses(
    store: AsyncRowStore, roots: Iterable[tuple[str, Path]]
) -> tuple[Accepted, ...]:
    """Of the views that are published or staged, and of the archives on this machine.

    roots: topic and its archive. Of a plan that cannot be used none. Raises StoreError,
    StreamError.
    """
    found: list[Accepted] = []
    try:
        plan, staged = await published_plan(store), await staged_plan(store)
    except PlanError:
        views: dict[tuple[str, int], ViewPlan] = {}
    else:
        views = {view.key: view for view in (*plan.views, *(staged.plan or plan).views)}
    for view in views.values():
        whose = f"{view.name}@{view.generation}"
        found += [Accepted(whose, loss) for loss in await recorded_losses(store, view)]
    for topic, root in roots:
        found += [Accepted(ARCHIVE, loss) for loss in archived_losses(topic, root)]
    return tuple(found)
