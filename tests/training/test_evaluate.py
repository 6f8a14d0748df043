"""AUC, GAUC and the bootstrap against oracles a reader believes at sight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.evaluate import Groups, _replicate, auc, evaluate, gauc, user_aucs


def naive_auc(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Every pair of a positive and a negative, one by one."""
    won = pairs = 0.0
    for positive in scores[labels]:
        for negative in scores[~labels]:
            won += 1.0 if positive > negative else 0.5 if positive == negative else 0.0
            pairs += 1
    return won / pairs if pairs else math.nan


def naive_gauc(
    labels: NDArray[np.bool_], scores: NDArray[np.float64], users: NDArray[np.int64]
) -> float:
    """Each user's own AUC, weighted by the user's examples; users of one class left out."""
    total = weight = 0.0
    for user in set(users.tolist()):
        mine = users == user
        value = naive_auc(labels[mine], scores[mine])
        if not math.isnan(value):
            total += value * mine.sum()
            weight += mine.sum()
    return total / weight if weight else math.nan


EXAMPLES = st.lists(
    st.tuples(st.booleans(), st.integers(-3, 3), st.integers(0, 5)), min_size=0, max_size=60
)


def arrays(
    examples: list[tuple[bool, int, int]],
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    labels = np.array([e[0] for e in examples], bool)
    scores = np.array([e[1] / 4 for e in examples], float)  # few values: many ties
    return labels, scores, np.array([e[2] for e in examples], np.int64)


@given(EXAMPLES)
def test_auc_and_gauc_equal_the_pairwise_oracle(examples: list[tuple[bool, int, int]]) -> None:
    labels, scores, users = arrays(examples)
    assert auc(labels, scores) == pytest.approx(naive_auc(labels, scores), nan_ok=True)
    assert gauc(labels, scores, users) == pytest.approx(
        naive_gauc(labels, scores, users), nan_ok=True
    )


@given(EXAMPLES, st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_replicate_equals_the_oracle_on_repeated_users(
    examples: list[tuple[bool, int, int]], seed: int
) -> None:
    """Weighting users is the same as writing a drawn user's examples that many times."""
    labels, scores, users = arrays(examples)
    ids = np.unique(users)
    drawn = np.random.default_rng(seed).choice(ids, len(ids)) if len(ids) else ids
    rows = [np.flatnonzero(users == user) for user in drawn]
    at = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    copies = np.repeat(np.arange(len(drawn)), [len(r) for r in rows])
    draws = np.array([[(drawn == user).sum() for user in ids]], float)
    index = np.unique(users, return_inverse=True)[1]
    aucs, gaucs = _replicate(labels, scores, index, draws)
    assert aucs[0] == pytest.approx(naive_auc(labels[at], scores[at]), nan_ok=True)
    assert gaucs[0] == pytest.approx(naive_gauc(labels[at], scores[at], copies), nan_ok=True)


def test_user_aucs_by_hand() -> None:
    labels = np.array([1, 0, 1, 1, 0], bool)
    scores = np.array([0.1, 0.2, 0.9, 0.5, 0.5])
    users = np.array([7, 7, 3, 9, 9])
    ids, values, counts = user_aucs(labels, scores, users)
    assert ids.tolist() == [3, 7, 9]
    assert np.isnan(values[0]) and values[1:].tolist() == [0.0, 0.5]
    assert counts.tolist() == [1, 2, 2]


@pytest.mark.parametrize("labels", [[], [True], [False, False]])
def test_one_class_or_nothing_is_nan(labels: list[bool]) -> None:
    known = np.array(labels, bool)
    scores = np.zeros(len(labels))
    users = np.arange(len(labels))
    assert math.isnan(auc(known, scores))
    result = evaluate(known, {"a": scores}, Groups(users, users), replicates=10)
    assert math.isnan(result.models["a"].auc.value) and math.isnan(result.models["a"].gauc.low)


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="got NaN"):
        auc(np.array([True, False]), np.array([np.nan, 0.0]))


def sample(seed: int, n: int = 2_000) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    return generator.random(n) < 0.4, generator.integers(0, 400, n)


def pages_of(users: NDArray[np.int64]) -> Groups:
    """Two pages of each user."""
    return Groups(users, 2 * users + np.arange(len(users)) % 2)


def test_bootstrap_is_the_same_for_the_same_seed_and_independent_of_other_models() -> None:
    labels, users = sample(1)
    groups = pages_of(users)
    generator = np.random.default_rng(2)
    good, bad = labels + generator.normal(size=len(labels)), generator.normal(size=len(labels))
    both = evaluate(labels, {"good": good, "bad": bad}, groups, baseline="bad", seed=5)
    again = evaluate(labels, {"good": good, "bad": bad}, groups, baseline="bad", seed=5)
    alone = evaluate(labels, {"good": good}, groups, seed=5)
    other = evaluate(labels, {"good": good}, groups, seed=6)
    assert both == again
    assert both.models["good"] == alone.models["good"]
    assert other.models["good"].auc.value == alone.models["good"].auc.value
    assert other.models["good"].auc.low != alone.models["good"].auc.low


def test_intervals_are_paired_and_of_the_right_width() -> None:
    """A model and its monotone copy differ by exactly nothing, whatever users are drawn; and the
    interval of an AUC of chance has the width of theory, 2 * 1.96 * sqrt((n + 1) / (12 p q))."""
    labels, users = sample(3)
    scores = np.random.default_rng(4).normal(size=len(labels))
    result = evaluate(
        labels,
        {"m": scores, "copy": 3 * scores + 1},
        pages_of(users),
        baseline="m",
        replicates=2_000,
    )
    (difference,) = result.differences
    assert (difference.auc.low, difference.auc.value, difference.auc.high) == (0, 0, 0)
    assert (difference.gauc.low, difference.gauc.high) == (0, 0)
    assert (difference.page_gauc.low, difference.page_gauc.high) == (0, 0)
    interval = result.models["m"].auc
    p, q = labels.sum(), (~labels).sum()
    assert interval.low < interval.value < interval.high
    width = 2 * 1.96 * math.sqrt((p + q + 1) / (12 * p * q))
    assert interval.high - interval.low == pytest.approx(width, rel=0.15)


def test_counts() -> None:
    labels = np.array([1, 0, 1, 1], bool)
    groups = Groups(np.array([1, 1, 2, 2]), np.array([5, 6, 7, 7]))
    result = evaluate(labels, {"m": np.arange(4.0)}, groups, replicates=1)
    assert (result.examples, result.positives, result.users, result.gauc_users) == (4, 3, 2, 1)
    assert result.gauc_pages == 0
    assert math.isnan(result.models["m"].page_gauc.value)


def test_page_gauc_compares_within_a_page_and_draws_users() -> None:
    """The value is GAUC with the page in the user's place; two pages of one user come together."""
    labels, users = sample(7)
    groups = pages_of(users)
    scores = np.random.default_rng(8).normal(size=len(labels)) + labels
    result = evaluate(labels, {"m": scores}, groups, replicates=200)
    figure = result.models["m"].page_gauc
    assert figure.value == pytest.approx(naive_gauc(labels, scores, groups.pages))
    assert figure.low < figure.value < figure.high
    one = np.zeros(len(labels), np.int64)
    whole = evaluate(labels, {"m": scores}, Groups(one, groups.pages), replicates=20)
    alone = whole.models["m"].page_gauc
    drawn_together = "a user is drawn with all pages"
    assert [alone.low, alone.high] == pytest.approx([figure.value] * 2), drawn_together


def test_what_follows_a_users_own_labels_stands_below_one_half_in_gauc() -> None:
    """Each user is shown two videos on two pages; the second time the click of the first is known.
    It tells users apart and says nothing about videos, which is what the page GAUC says, too."""
    generator = np.random.default_rng(9)
    taste = generator.beta(0.8, 0.8, 3_000)  # (U,)
    labels = generator.random((3_000, 2)) < taste[:, None]  # (U, 2)
    rate = np.stack([np.full(3_000, 0.5), np.where(labels[:, 0], 0.75, 0.25)], 1)  # (U, 2)
    users = np.repeat(np.arange(3_000), 2)
    groups = Groups(users, np.arange(6_000))
    found = evaluate(labels.ravel(), {"rate": rate.ravel()}, groups, replicates=1)
    assert found.models["rate"].auc.value > 0.55
    assert found.models["rate"].gauc.value == 0
    assert found.gauc_pages == 0
