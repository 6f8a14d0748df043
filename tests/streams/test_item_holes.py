"""How far a generation of items is filled where the source dropped what was not re-keyed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from schemas.errors import StreamError
from schemas.names import PLAN_KEY, generation_group
from schemas.plan import Plan, dump_plan
from store.memory import AsyncMemoryRowStore
from streams.ends import Partition
from streams.item_holes import Beyond, ItemHoles
from streams.rekey import rekey_group
from streams.source_table import Pair, PairStore, SourceTable
from tests.streams.test_backfill import CONFIG, ITEMS, LOG, REKEYED, ListReader
from tests.streams.test_filling import messages

MARK, HELD_FROM, END = 4, 9, 12
GROUP = rekey_group(CONFIG.item_group, REKEYED.epoch)


async def read_ends(starts: Mapping[Partition, int]) -> Mapping[Partition, int]:
    """Of the source; the re-keyed log holds nothing behind the pairs."""
    return {at: END if at[0] == CONFIG.topic else start for at, start in starts.items()}


def found(
    reached: Mapping[int, int], mark: int | None = MARK, held_from: int = HELD_FROM, given: int = 0
) -> Beyond:
    """reached: by re-keyed partition, of source partition 0. given: another generation's there."""

    async def scenario() -> Beyond:
        store = AsyncMemoryRowStore()
        config = replace(CONFIG, patience_ms=50)
        if mark is not None:
            await store.put_progress(CONFIG.topic, GROUP, {0: (LOG.epoch, mark, 0)})
        plan = dump_plan(Plan(1, 0, (replace(ITEMS, generation=1),), ()))
        await store.compare_and_set_text(PLAN_KEY, "version", 0, plan)
        for group, held in (
            (CONFIG.item_group, reached),
            (generation_group(CONFIG.item_group, ITEMS.name, 1), dict.fromkeys(reached, given)),
        ):
            pairs = PairStore(store, CONFIG.item_topic, group, 50)
            for partition, at in held.items():
                table = SourceTable({0: (LOG.epoch, at)})
                await pairs.save(partition, Pair(REKEYED.epoch, 0, table, 0))
        reader = ListReader(messages(30), held_from)
        return await ItemHoles(store, config, LOG, REKEYED, reader, read_ends).beyond()

    return asyncio.run(scenario())


def test_all_is_filled_up_to_the_sources_end() -> None:
    assert found({0: 4, 1: 4}) == {0: {0: END}, 1: {0: END}}


def test_what_the_source_holds_is_no_hole() -> None:
    assert found({0: 4, 1: 4}, held_from=4) == {}
    assert found({0: 12, 1: 12}, mark=12, held_from=12) == {}
    assert found({}) == {}, "nothing was folded yet"


def test_all_generations_are_filled_up_to_the_same_place() -> None:
    assert found({0: 4, 1: 4}, given=10) == {0: {0: 10}, 1: {0: 10}}
    assert found({0: 4, 1: 4}, given=8) == {0: {0: END}, 1: {0: END}}, "behind the hole"


def test_what_was_re_keyed_before_the_hole_is_waited_for() -> None:
    says = r"all folded up to offset 4 of t/0, where the hole is, .* see that `encore items` runs"
    with pytest.raises(StreamError, match=says):
        found({0: 4, 1: 3})


def test_a_new_re_keyed_log_begins_behind_what_one_table_knows() -> None:
    assert found({0: 10, 1: 4}, mark=None) == {1: {0: END}}
    assert found({0: 9, 1: 10}, mark=None) == {}
