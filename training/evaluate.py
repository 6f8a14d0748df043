"""How good a ranking is: AUC, GAUC, and paired bootstrap intervals over users. numpy only.

Symbols: n examples, U users and P pages with an example, R bootstrap replicates, G groups of equal
score.

AUC is the probability that a positive is scored above a negative, ties counting one half. GAUC is
the mean of each user's own AUC, weighted by the user's number of examples (impressions); users
whose examples are all of one class have no AUC and are left out, as in Zhu et al., "Optimized Cost
per Click in Taobao Display Advertising" (KDD 2017).

A user's examples are of several pages, scored at several times, and between two of them the user's
own features take in the first one's label. Of a user with one click in two examples the other has
none, whatever they say: so they stand below one half in GAUC even where they tell users apart well.
The page GAUC compares within a page alone, where all share the user's features and where ranking
happens: the mean of each page's own AUC, weighted by its examples.

The unit of resampling is the user, since one user's examples are not independent. Models are
compared on the same resamples (paired), so the interval of a difference is narrower than the two
intervals suggest. Intervals are percentiles: 2.5 % and 97.5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK_CELLS = 4_000_000  # bounds the (replicates, n) arrays of the bootstrap to some 32 MB each
_LOW, _HIGH = 2.5, 97.5  # percentiles of an interval


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval; NaN where it is undefined (one class only)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelQuality:
    """AUC and both GAUCs of one model on one task."""

    auc: Interval
    gauc: Interval
    page_gauc: Interval


@dataclass(frozen=True)
class Difference:
    """`model` minus `baseline`, paired on the same resamples of users."""

    model: str
    baseline: str
    auc: Interval
    gauc: Interval
    page_gauc: Interval


@dataclass(frozen=True)
class Evaluation:
    """All models on one task. gauc_users, gauc_pages: those with both classes, hence an AUC."""

    examples: int
    positives: int
    users: int
    gauc_users: int
    gauc_pages: int
    models: dict[str, ModelQuality]
    differences: tuple[Difference, ...]


def auc(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """AUC of (n,) scores against (n,) labels in O(n log n); NaN when a class is missing.

    >>> auc(np.array([True, False, True]), np.array([0.9, 0.5, 0.5]))
    0.75
    """
    weights = np.ones((1, len(labels)))  # (1, n) f64
    return float(_Ordered.of(labels, scores).auc(weights)[0])


def user_aucs(
    labels: NDArray[np.bool_], scores: NDArray[np.floating], users: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Each user's AUC: (ids (U,) ascending, AUC (U,), NaN for one class only, examples (U,))."""
    ids, user_index = np.unique(users, return_inverse=True)  # (U,) i64, (n,) i64
    return ids, _user_aucs(labels, scores, user_index, len(ids)), np.bincount(user_index)


def gauc(
    labels: NDArray[np.bool_], scores: NDArray[np.floating], users: NDArray[np.int64]
) -> float:
    """GAUC of (n,) scores; NaN when no user has both classes.

    >>> gauc(np.array([1, 0, 1, 0], bool), np.array([.9, .1, .2, .8]), np.array([1, 1, 2, 2]))
    0.5
    """
    _, values, counts = user_aucs(labels, scores, users)
    return float(_weighted(values, np.ones((1, len(values))), counts)[0])


@dataclass(frozen=True)
class Groups:
    """users, pages: (n,) i64, of each example; a page is of one user."""

    users: NDArray[np.int64]
    pages: NDArray[np.int64]


def evaluate(
    labels: NDArray[np.bool_],
    scores: Mapping[str, NDArray[np.floating]],
    groups: Groups,
    *,
    baseline: str = "",
    replicates: int = 1_000,
    seed: int = 0,
) -> Evaluation:
    """AUC and GAUCs with intervals of every model in `scores`, and each one minus `baseline`.

    labels and each array of `scores` are (n,). The same seed gives the same intervals,
    whatever other models are in `scores`. An empty `baseline` means no differences.
    """
    ids, user_index = np.unique(groups.users, return_inverse=True)  # (U,) i64, (n,) i64
    draws = _draws(len(ids), replicates, seed)  # (1 + R, U) f64
    pages = _Pages.of(groups.pages, user_index)
    figures = {
        name: (
            *_replicate(labels, np.asarray(values), user_index, draws),
            pages.replicate(labels, np.asarray(values), draws),
        )
        for name, values in scores.items()
    }
    level = np.zeros(len(labels))  # a score that says nothing: who has an AUC at all
    any_user = _user_aucs(labels, level, user_index, len(ids))  # (U,) f64
    any_page = _user_aucs(labels, level, pages.index, len(pages.owner))  # (P,) f64
    return Evaluation(
        examples=len(labels),
        positives=int(np.count_nonzero(labels)),
        users=len(ids),
        gauc_users=int(np.count_nonzero(~np.isnan(any_user))),
        gauc_pages=int(np.count_nonzero(~np.isnan(any_page))),
        models={name: ModelQuality(*map(_interval, each)) for name, each in figures.items()},
        differences=tuple(
            Difference(name, baseline, *map(_interval, _minus(each, figures[baseline])))
            for name, each in figures.items()
            if baseline and name != baseline
        ),
    )


def _minus(
    left: Sequence[NDArray[np.float64]], right: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """Figure by figure, replicate by replicate."""
    return [a - b for a, b in zip(left, right, strict=True)]


@dataclass(frozen=True)
class _Pages:
    """index: (n,) of each example among the pages. owner: (P,) of each page's user among them."""

    index: NDArray[np.int64]
    owner: NDArray[np.int64]

    @classmethod
    def of(cls, pages: NDArray[np.int64], user_index: NDArray[np.int64]) -> _Pages:
        _, first, index = np.unique(pages, return_index=True, return_inverse=True)
        return cls(index, user_index[first])

    def replicate(
        self,
        labels: NDArray[np.bool_],
        scores: NDArray[np.floating],
        draws: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Page GAUC (1 + R,) of each row of `draws` (1 + R, U): a user is drawn with all pages."""
        values = _user_aucs(labels, scores, self.index, len(self.owner))  # (P,) f64
        counts = np.bincount(self.index, minlength=len(self.owner))  # (P,) i64
        known = ~np.isnan(values)  # (P,) bool
        return _weighted(values[known], draws[:, self.owner[known]], counts[known])


@dataclass(frozen=True)
class _Ordered:
    """Examples in ascending order of score, and where each group of equal scores begins."""

    order: NDArray[np.int64]  # (n,)
    positive: NDArray[np.bool_]  # (n,), in that order
    starts: NDArray[np.int64]  # (G,)

    @classmethod
    def of(cls, labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> _Ordered:
        if np.isnan(scores).any():
            raise ValueError("scores: needs numbers, got NaN")
        order = np.argsort(scores, kind="stable")  # (n,) i64
        ranked = scores[order]  # (n,)
        first = np.ones(len(order), bool)  # (n,) bool
        first[1:] = ranked[1:] != ranked[:-1]
        return cls(order, np.asarray(labels, bool)[order], np.flatnonzero(first))

    def auc(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weighted AUC of each replicate: (R, n) weights → (R,); NaN when a class has no weight."""
        if not len(self.order):
            return np.full(len(weights), np.nan)
        ranked = weights[:, self.order]  # (R, n) f64
        positive = np.add.reduceat(ranked * self.positive, self.starts, axis=1)  # (R, G) f64
        negative = np.add.reduceat(ranked * ~self.positive, self.starts, axis=1)  # (R, G) f64
        below = np.cumsum(negative, axis=1) - negative / 2  # (R, G) f64: ties count one half
        won = np.einsum("rg,rg->r", positive, below)  # (R,) f64
        pairs = positive.sum(axis=1) * negative.sum(axis=1)  # (R,) f64
        values: NDArray[np.float64] = np.full(len(won), np.nan)  # (R,) f64
        np.divide(won, pairs, out=values, where=pairs > 0)
        return values


def _user_aucs(
    labels: NDArray[np.bool_],
    scores: NDArray[np.floating],
    user_index: NDArray[np.int64],
    users: int,
) -> NDArray[np.float64]:
    """(U,) AUC of each user by mid-ranks within the user, vectorised; NaN for one class only."""
    if np.isnan(scores).any():
        raise ValueError("scores: needs numbers, got NaN")
    positive = np.asarray(labels, bool)
    order = np.lexsort((scores, user_index))  # (n,) i64: by user, then score
    user, ranked = user_index[order], scores[order]  # (n,), (n,)
    first = np.ones(len(order), bool)  # (n,) bool: begins a group of equal user and score
    first[1:] = (user[1:] != user[:-1]) | (ranked[1:] != ranked[:-1])
    starts = np.flatnonzero(first)  # (G,) i64
    sizes = np.diff(np.append(starts, len(order)))  # (G,) i64
    counts = np.bincount(user_index, minlength=users)  # (U,) i64
    user_start = np.cumsum(counts) - counts  # (U,) i64
    middle = starts + (sizes + 1) / 2  # (G,) f64: mid-rank, from 1, over all
    rank = np.repeat(middle, sizes) - user_start[user]  # (n,) f64: within the user
    hits = positive[order]  # (n,) bool
    rank_sum = np.bincount(user[hits], weights=rank[hits], minlength=users)  # (U,) f64
    p = np.bincount(user[hits], minlength=users)  # (U,) i64
    pairs = p * (counts - p)  # (U,) i64
    won = rank_sum - p * (p + 1) / 2  # (U,) f64
    values: NDArray[np.float64] = np.full(users, np.nan)  # (U,) f64
    np.divide(won, pairs, out=values, where=pairs > 0)
    return values


def _weighted(
    values: NDArray[np.float64], draws: NDArray[np.float64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(R,) mean of the users' AUC (U,), weighted by draws (R, U) times examples (U,)."""
    known = ~np.isnan(values)  # (U,) bool
    weights = draws[:, known] * counts[known]  # (R, U') f64
    total = weights.sum(axis=1)  # (R,) f64
    summed = weights @ values[known]  # (R,) f64
    means: NDArray[np.float64] = np.full(len(draws), np.nan)  # (R,) f64
    np.divide(summed, total, out=means, where=total > 0)
    return means


def _draws(users: int, replicates: int, seed: int) -> NDArray[np.float64]:
    """(1 + R, U): how often each user is drawn; row 0 is the sample itself, every user once."""
    generator = np.random.default_rng(seed)
    draws = np.ones((1 + replicates, users))  # (1 + R, U) f64
    if users:
        draws[1:] = generator.multinomial(users, np.full(users, 1 / users), size=replicates)
    return draws


def _replicate(
    labels: NDArray[np.bool_],
    scores: NDArray[np.floating],
    user_index: NDArray[np.int64],
    draws: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC and GAUC (1 + R,) of each row of `draws` (1 + R, U)."""
    ordered = _Ordered.of(labels, scores)
    rows = max(1, _CHUNK_CELLS // max(1, len(labels)))
    aucs = [
        ordered.auc(draws[at : at + rows][:, user_index])  # (rows, n)
        for at in range(0, len(draws), rows)
    ]
    users = draws.shape[1]
    values = _user_aucs(labels, scores, user_index, users)  # (U,) f64
    counts = np.bincount(user_index, minlength=users)  # (U,) i64
    return np.concatenate(aucs), _weighted(values, draws, counts)


def _interval(values: NDArray[np.float64]) -> Interval:
    """Row 0 is the figure, the rest are its replicates; undefined replicates are left out."""
    replicates = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(replicates):
        return Interval(float(values[0]), float("nan"), float("nan"))
    low, high = np.percentile(replicates, [_LOW, _HIGH])
    return Interval(float(values[0]), float(low), float(high))
