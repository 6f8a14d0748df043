"""Training tensors are the served tensors; candidates stay with their requests and labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.program import ServiceProgram
from audit.join import JoinQuery, LogPaths, join_log
from audit.rebuild import rebuilt_tensors
from predictor.cascade import inputs_of
from predictor.spec import input_spec
from schemas.errors import RecordError
from tests.training.world import (
    CANDIDATES,
    DAY_MS,
    DAYS,
    FINGERPRINT,
    PLAN,
    PROGRAM,
    REQUESTS_A_DAY,
    SHOWN,
    START_MS,
    TEST_MS,
)
from training.batches import page_inputs, pair_inputs, request_inputs
from training.dataset import Dataset, dataset_of, distinct_rows


def test_rows_are_those_that_the_request_program_gives_one_by_one(
    world_dir: Path, dataset: Dataset
) -> None:
    log = join_log(LogPaths.under(world_dir), JoinQuery("ranking", FINGERPRINT))
    tensors = dataset.tensors
    spec = input_spec(PROGRAM.service)
    for row, (_, one) in enumerate(rebuilt_tensors(log, PROGRAM)):
        own = slice(dataset.first[row], dataset.first[row + 1])
        assert np.array_equal(tensors.user_slots[row : row + 1], one.user_slots)
        assert np.array_equal(tensors.item_slots[dataset.item_row[own]], one.item_slots)
        for name, ids in one.sequences.items():
            assert np.array_equal(tensors.sequences[name][row : row + 1], ids)
            assert np.array_equal(tensors.lengths[name][row : row + 1], one.lengths[name])
        if row % 50 == 0:
            served, trained = inputs_of(one, spec), request_inputs(dataset, row)
            assert served.user_of is trained.user_of is None
            assert served.item_slots.equal(trained.item_slots)
            for left, right in zip(served.sequences, trained.sequences, strict=True):
                assert left.equal(right)


def test_sizes_and_labels(dataset: Dataset) -> None:
    requests = DAYS * REQUESTS_A_DAY
    assert len(dataset.now_ms) == requests == len(dataset.first) - 1
    assert len(dataset.item_ids) == requests * CANDIDATES
    assert dataset.exposed.sum() == requests * SHOWN
    assert not dataset.labels[~dataset.exposed].any()
    assert 0.3 < dataset.labels[dataset.exposed, 0].mean() < 0.7
    tower = np.unique(dataset.tower_row)
    assert len(tower) == 40  # one row a video, however often it was ranked
    assert len(dataset.tensors.item_slots) > 40  # its crosses differ from user to user
    own = input_spec(PROGRAM.service).tower_slots
    plain = dataset.tensors.item_slots[:, : len(own)]
    assert np.array_equal(plain[dataset.tower_row], plain)


def test_requests_candidates_examples(dataset: Dataset) -> None:
    test = dataset.requests(TEST_MS, TEST_MS + DAY_MS)
    assert len(test) == REQUESTS_A_DAY
    assert dataset.now_ms[test].min() == TEST_MS
    assert len(dataset.requests(0, START_MS)) == 0
    some = np.array([5, 2, 9])
    candidates = dataset.candidates(some)
    assert dataset.request_row[candidates].tolist() == np.repeat(some, CANDIDATES).tolist()
    examples = dataset.examples(some)
    assert set(examples) == {c for c in candidates if dataset.exposed[c]}
    assert np.array_equal(dataset.users_of(examples), dataset.user_ids[np.repeat(some, SHOWN)])
    assert len(dataset.candidates(some[:0])) == 0


def test_batches_pair_each_candidate_with_its_own_user(dataset: Dataset) -> None:
    rows = np.random.default_rng(0).permutation(len(dataset.item_ids))[:97]
    inputs = pair_inputs(dataset, rows)
    assert inputs.user_of is not None
    users = inputs.user_slots[inputs.user_of].numpy()
    assert np.array_equal(users, dataset.tensors.user_slots[dataset.request_row[rows]])
    items = dataset.tensors.item_slots[dataset.item_row[rows]]
    assert np.array_equal(inputs.item_slots.numpy(), items)
    requests = np.array([3, 8, 40])
    pages, candidates, item_of = page_inputs(dataset, requests)
    assert pages.user_of is not None
    assert np.array_equal(candidates, dataset.candidates(requests))
    assert np.array_equal(requests[pages.user_of.numpy()], dataset.request_row[candidates])
    items = dataset.tensors.item_slots[dataset.item_row[candidates]]
    own = len(input_spec(PROGRAM.service).tower_slots)
    assert np.array_equal(pages.item_slots[item_of].numpy()[:, :own], items[:, :own])
    assert len(pages.item_slots) == len(np.unique(items[:, :own], axis=0))


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=50))
def test_distinct_rows(rows: list[tuple[int, int, int]]) -> None:
    given_rows = np.array(rows, np.int32).reshape(-1, 3)
    distinct, place = distinct_rows(given_rows)
    assert np.array_equal(distinct[place], given_rows)
    assert len(distinct) == len(set(rows))


def test_a_log_of_another_plan_is_refused(world_dir: Path) -> None:
    log = join_log(LogPaths.under(world_dir), JoinQuery("ranking", FINGERPRINT))
    service = replace(PLAN.service("ranking"), fingerprint="f" * 16)
    other = ServiceProgram(replace(PLAN, services=(service,)), "ranking")
    with pytest.raises(RecordError, match=r"rank log\.fingerprint: needs f{16}"):
        dataset_of(log, other)
