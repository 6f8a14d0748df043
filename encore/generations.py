"""Which generations of views the store holds, what still names them, and the removal of the others.

A generation is numbered once: plans and backfills take numbers above all that were ever published
or staged (`catalog.numbering`, `catalog.staging`). So one that lies at or below those numbers, and
that neither the published nor a staged plan names, is named by no later plan either, and may be
removed while plans are published and filled beside it.

Models name no generations: their fingerprints are over what is served (`schemas.fingerprint`).
The numbers that the store gave to topic ids (`encore:epoch:…`) belong to logs, and stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from catalog.publish import staged, version_of
from encore.lookup import published_plan
from schemas.errors import PlanError
from schemas.names import (
    floors_keys,
    gaps_keys,
    generation_group,
    losses_keys,
    parse_row_key,
    progress_key,
    row_pattern,
    source_table_key,
    source_table_version_key,
)
from schemas.plan import Plan
from schemas.staged import Staged
from store.base import RowStore
from store.keyspace import PAGE_KEYS, RedisKeySpace
from streams.config import StreamConfig
from streams.moving import every_config

State = Literal["published", "staged", "old", "unknown"]
Key = tuple[str, int]  # view, generation
#: Told of keys looked at, of how many there are.
Note = Callable[[int, int], None]

_WHY: Final[dict[State, str]] = {
    "published": "readers and workers use it",
    "staged": "a backfill fills it; `encore backfill --cancel` gives it up",
    "unknown": "no plan of this store took that number",
}


@dataclass(frozen=True, slots=True)
class Held:
    """One generation in the store. bytes: of the server's memory, rows with their keys. marks:
    keys that tell how far it is folded.

    state: `old` is what may be removed; `unknown` what this store's plans do not speak of.
    """

    view: str
    generation: int
    state: State
    rows: int
    bytes: int
    marks: int


@dataclass(frozen=True, slots=True)
class Names:
    """What the plans of a store name, at one moment."""

    plan: Plan
    staged: Staged

    def state(self, key: Key) -> State:
        """What becomes of a generation: of one that is `old` never anything again."""
        view, generation = key
        if key in {each.key for each in self.plan.views}:
            return "published"
        ahead = self.staged.plan
        if ahead is not None and key in {each.key for each in ahead.views}:
            return "staged"
        return "old" if 1 <= generation <= self.newest(view) else "unknown"

    def newest(self, view: str) -> int:
        """The last number that was published or staged, 0 for a view that never was."""
        current = {each.name: each.generation for each in self.plan.views}
        taken = (current, self.plan.retired, self.staged.used)
        return max(numbers.get(view, 0) for numbers in taken)

    @property
    def views(self) -> list[str]:
        """Every view that has or had generations."""
        current = (view.name for view in self.plan.views)
        return sorted({*current, *self.plan.retired, *self.staged.used})


def names_of(store: RowStore) -> Names:
    """The generations that plans name; read them before looking at rows. Raises PlanError,
    StoreError.

    Both plans are of one moment: between a staged plan and its publication lies none where neither
    names its generations.
    """
    while True:
        version = version_of(store)
        names = Names(published_plan(store), staged(store))
        if version_of(store) == version:
            return names


def list_generations(store: RedisKeySpace, config: StreamConfig, note: Note) -> list[Held]:
    """Every generation of which something lies in the store. Raises PlanError, StoreError."""
    names = names_of(store)
    rows: Counter[Key] = Counter()
    sizes: Counter[Key] = Counter()
    for keys in _walk(store, row_pattern(), note):
        weights = store.sizes([name for each in keys.values() for name in each])
        for key, each in keys.items():
            rows[key] += len(each)
            sizes[key] += sum(weights[: len(each)])
            del weights[: len(each)]
    marks = {
        (view, generation): _count_marks(store, config, (view, generation))
        for view in names.views
        for generation in range(1, names.newest(view) + 1)
    }
    there = sorted({*rows, *(key for key, count in marks.items() if count)})
    return [Held(*key, names.state(key), rows[key], sizes[key], marks.get(key, 0)) for key in there]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to prune: of `view` these generations, or all old ones where none is named.

    remove: False looks and counts alone.
    """

    view: str
    generations: tuple[int, ...] = ()
    remove: bool = False


def prune(store: RedisKeySpace, config: StreamConfig, choice: Choice, note: Note) -> list[Held]:
    """What was removed, or would be, by generation. It may be run again after any crash.

    Raises PlanError for a view that no plan of this store knows and for a generation that is not
    old; StoreError.
    """
    names = names_of(store)
    chosen = _chosen(names, choice)
    rows: Counter[Key] = Counter()
    sizes: Counter[Key] = Counter()
    for keys in _walk(store, row_pattern(choice.view), note):
        for key in keys.keys() & chosen:
            sizes[key] += sum(store.sizes(keys[key]))
            rows[key] += store.unlink(keys[key]) if choice.remove else len(keys[key])
    marks = {key: _count_marks(store, config, key) for key in chosen}
    if choice.remove:
        for key in chosen:
            store.unlink(_marks(store, config, key))
    there = sorted(key for key in chosen if rows[key] or marks[key])
    return [Held(*key, "old", rows[key], sizes[key], marks[key]) for key in there]


def _chosen(names: Names, choice: Choice) -> set[Key]:
    if choice.view not in names.views:
        raise PlanError(
            "generations.prune",
            required=f"one of {', '.join(names.views)}",
            got=repr(choice.view),
            do="`encore generations list` tells what is there",
        )
    for generation in choice.generations:
        state = names.state((choice.view, generation))
        if state != "old":
            raise PlanError(
                f"generations.prune, {choice.view}@{generation}",
                required="an old generation",
                got=f"one that is {state}: {_WHY[state]}",
                do="leave --generation out: every old one is taken",
            )
    wanted = choice.generations or range(1, names.newest(choice.view) + 1)
    keys = ((choice.view, generation) for generation in wanted)
    return {key for key in keys if names.state(key) == "old"}


def _walk(store: RedisKeySpace, pattern: str, note: Note) -> Iterator[dict[Key, list[str]]]:
    """Row keys by generation, a page at a time."""
    total, looked = store.facts().keys, 0
    for page in store.pages(pattern):
        found: dict[Key, list[str]] = {}
        for name in page:
            parts = parse_row_key(name)
            if parts is not None:
                found.setdefault(parts[:2], []).append(name)
        yield found
        looked += PAGE_KEYS
        note(min(looked, total), total)
    note(total, total)


def _count_marks(store: RedisKeySpace, config: StreamConfig, key: Key) -> int:
    return sum(size > 0 for size in store.sizes(_marks(store, config, key)))


def _marks(store: RedisKeySpace, config: StreamConfig, key: Key) -> list[str]:
    """Every key under which a generation's floors and positions may lie, of any topic."""
    found = (name for each in every_config(store, config) for name in _marks_in(each, key))
    return list(dict.fromkeys(found))


def _marks_in(config: StreamConfig, key: Key) -> list[str]:
    keys = list(losses_keys(*key))
    readers: Collection[tuple[str, str]] = (
        (config.topic, config.group),
        (config.item_topic, config.item_group),
    )
    for topic, group in readers:
        own = generation_group(group, *key)
        keys += (
            progress_key(topic, own),
            *floors_keys(topic, group, *key),
            *gaps_keys(topic, group, *key),
        )
        for partition in range(config.partitions):
            place = topic, own, partition
            keys += (source_table_key(*place), source_table_version_key(*place))
    return keys
