"""Walking a real server: everything is named, the pace is kept; sizes and removal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from store.keyspace import PAGE_KEYS, RedisKeySpace


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def space(valkey: str, pauses: list[float]) -> Iterator[RedisKeySpace]:
    url = valkey.removesuffix("/0") + "/13"
    with RedisKeySpace(url, keys_per_s=10_000, sleep=pauses.append) as opened:
        for number in range(3 * PAGE_KEYS):
            opened.put_text(f"walk@{number % 2}:{{{number}}}", "x")
        yield opened
        for page in opened.pages("*"):
            opened.unlink(page)


def test_a_walk_names_every_key_and_pauses_between_pages(
    space: RedisKeySpace, pauses: list[float]
) -> None:
    pages = list(space.pages("walk@1:*"))
    assert {key for page in pages for key in page} == {
        f"walk@1:{{{number}}}" for number in range(1, 3 * PAGE_KEYS, 2)
    }
    assert pauses == [PAGE_KEYS / 10_000] * (len(pages) - 1)
    assert len(pages) >= 3


def test_sizes_and_unlink(space: RedisKeySpace) -> None:
    here, gone = space.sizes(["walk@0:{0}", "walk@0:{1}"])
    assert here > len("walk@0:{0}")
    assert gone == 0
    assert space.unlink(["walk@0:{0}", "walk@0:{1}", "walk@0:{2}"]) == 2
    assert space.unlink([]) == 0
    assert space.read(["walk@0:{0}", "walk@0:{4}"]) == [None, b"x"]
