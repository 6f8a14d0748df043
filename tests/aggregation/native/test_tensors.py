"""Ids by the kernels are those of numpy: any slots over any values, bit for bit."""

from __future__ import annotations

import ctypes
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation.block import SideBlock
from aggregation.crosses import OPERATORS as TABLE
from aggregation.native.layouts import BLOCKS, OPERATORS, STRUCTURES
from aggregation.native.library import Kernels, address
from aggregation.program import ServiceProgram
from aggregation.tensors import Tensors
from schemas.row import FENCE
from schemas.values import Block, null_mask
from tests.aggregation.native.worlds import random_block, random_plan, spaced

SEEDS = st.integers(0, 10**9)


def numpy_only() -> Kernels | None:
    return None


def both(built: Kernels, rng: np.random.Generator) -> tuple[ServiceProgram, ServiceProgram]:
    plan = random_plan(rng)
    return ServiceProgram(plan, "ranking", numpy_only), ServiceProgram(
        plan, "ranking", lambda: built
    )


def side_of(block: Block, views: int) -> SideBlock:
    status = np.zeros((len(block), views), np.uint8)
    return SideBlock(block, null_mask(block), status, np.zeros(status.shape, FENCE), 0)


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    for field in fields(Tensors):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(one, dict):
            assert list(one) == list(other)
        pairs = zip(one.values(), other.values(), strict=True) if isinstance(one, dict) else None
        for ids, right in pairs or [(one, other)]:
            assert (ids.dtype, ids.shape) == (right.dtype, right.shape)
            assert ids.flags.c_contiguous
            assert np.array_equal(ids, right), field.name


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, users=st.integers(1, 4), items=st.sampled_from([0, 1, 5, 63, 64, 65, 200]))
def test_tensors_are_those_of_numpy(built: Kernels, seed: int, users: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    slow, fast = both(built, rng)
    user = random_block(slow.user_dtype, users, rng)
    item = random_block(slow.item_dtype, items, rng)
    user_of = np.sort(rng.integers(0, users, items)) if seed % 2 else rng.integers(0, users, items)
    with np.errstate(invalid="ignore"):  # beyond int64 is its least, in numpy with a warning
        wanted = slow.tensors(user, item, user_of)
    assert_equal(fast.tensors(user, item, user_of), wanted)
    assert_equal(fast.tensors(spaced(user, 5), spaced(item, 24), user_of.astype(np.int32)), wanted)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, items=st.sampled_from([0, 1, 64, 130]))
def test_a_request_with_known_ids_is_that_of_numpy(built: Kernels, seed: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    slow, fast = both(built, rng)
    user = side_of(random_block(slow.user_dtype, 1, rng), len(slow.user_views))
    item = side_of(random_block(slow.item_dtype, items, rng), len(slow.item_views))
    with np.errstate(invalid="ignore"):
        own, wanted = slow.own_ids(item), slow.combine(user, item).tensors
    assert np.array_equal(fast.own_ids(item), own)
    wide = np.zeros((items, own.shape[1] + 3), np.int32)
    wide[:, : own.shape[1]] = own
    assert_equal(fast.combine(user, item).tensors, wanted)
    assert_equal(fast.combine(user, item, own).tensors, wanted)
    assert_equal(fast.combine(user, item, wide[:, : own.shape[1]]).tensors, wanted)


def test_a_length_beyond_the_capacity_is_cut(built: Kernels) -> None:
    """Blocks of a log are no more trusted than any other bytes."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        slow, fast = both(built, rng)
        user = random_block(slow.user_dtype, 2, rng)
        item = random_block(slow.item_dtype, 9, rng)
        for block in (user, item):
            for name in block.dtype.names or ():
                if name.endswith("__len"):
                    block[name] = 65_535
        user_of = rng.integers(0, 2, 9)
        with np.errstate(invalid="ignore"):
            found, wanted = (each.tensors(user, item, user_of) for each in (fast, slow))
        assert found.lengths.keys() == wanted.lengths.keys()
        for name, lengths in wanted.lengths.items():
            assert np.array_equal(found.lengths[name], lengths)
            assert np.array_equal(found.sequences[name], wanted.sequences[name])


@pytest.mark.parametrize("outside", [-1, 2, 2**40])
def test_a_user_that_is_not_there_is_numpys_to_judge(built: Kernels, outside: int) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        slow, fast = both(built, rng)
        if slow.service.crosses_of("pair"):
            break
    user, item = random_block(slow.user_dtype, 2, rng), random_block(slow.item_dtype, 3, rng)
    user_of = np.array([0, outside, 1])
    with np.errstate(invalid="ignore"):
        if outside < 0:
            assert_equal(fast.tensors(user, item, user_of), slow.tensors(user, item, user_of))
            return
        with pytest.raises(IndexError):
            fast.tensors(user, item, user_of)


def test_crosses_of_many_users_need_their_users(built: Kernels) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        _, fast = both(built, rng)
        if fast.service.crosses_of("pair"):
            break
    user, item = random_block(fast.user_dtype, 2, rng), random_block(fast.item_dtype, 3, rng)
    with pytest.raises(ValueError, match="needs user_of for crosses of 2 users"):
        fast.tensors(user, item)


def test_structures_are_laid_out_alike_on_both_sides(built: Kernels) -> None:
    sizes = np.zeros(len(STRUCTURES) + 1, np.int64)
    built.sizes(address(sizes))
    assert sizes.tolist() == [*(ctypes.sizeof(each) for each in STRUCTURES), BLOCKS.size]
    assert set(OPERATORS) == set(TABLE)
