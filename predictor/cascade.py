"""The cascade: coarse over all candidates, fine over the best, a page of the best of those.

Pure: equal tensors, models and settings give an equal result, in the time there is. A stage that
would not end by a request's deadline is left out before it begins: without the fine model the
coarse score decides the page, without any the caller's order. Ties go to the caller's order.

Symbols: N candidates, M most candidates of the fine stage, K page size, T tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from aggregation.tensors import Tensors
from predictor.budget import Budget, Stage, StageCosts
from predictor.networks import Inputs
from predictor.package import Model
from predictor.spec import InputSpec
from schemas.ranklog import Degraded

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_LARGEST: Final = np.float32(88)  # of what exp takes as float32


@dataclass(frozen=True, slots=True)
class CascadeConfig:
    """fine_limit: M. draw_share, draw_count: in this share of the requests, so many uniformly
    drawn coarse rejects get a fine score too and never a place on the page."""

    fine_limit: int = 1000
    draw_share: float = 0.0
    draw_count: int = 0


@dataclass(frozen=True, slots=True)
class Ranking:
    """What the cascade made of N candidates.

    fine: (Nf,) i64 places in the caller's order, ascending: the candidates of the fine stage, in
        the order in which they were scored. page: (K,) i64 places in `fine`, best first.
    coarse: (N,) f32, NaN without a coarse model. tasks: (Nf, T) f32 probabilities.
    final, draw_probability: (Nf,) f32. degraded: flags.
    """

    fine: I64
    coarse: F32
    tasks: F32
    final: F32
    draw_probability: F32
    page: I64
    degraded: Degraded

    def but(self, more: Degraded) -> Ranking:
        """The same with more flags."""
        return replace(self, degraded=self.degraded | more) if more else self


def inputs_of(tensors: Tensors, spec: InputSpec, rows: I64 | None = None) -> Inputs:
    """One request's tensors as a network's inputs; `rows` chooses candidates."""
    items = tensors.item_slots if rows is None else tensors.item_slots[rows]  # (N, Si) i32
    return Inputs(
        torch.from_numpy(tensors.user_slots),
        torch.from_numpy(items),
        tuple(torch.from_numpy(tensors.sequences[each.name]) for each in spec.sequences),
        tuple(torch.from_numpy(tensors.lengths[each.name]) for each in spec.sequences),
    )


def logits_of(model: Model, tensors: Tensors, rows: I64 | None = None) -> F32:
    """The logits of one request's candidates, or of those in `rows`: (N,) of a two-tower, (N, T)
    of a fine network."""
    if model.native is not None:
        return model.native.of_tensors(tensors, rows)
    return model.logits(inputs_of(tensors, model.network.spec.inputs, rows))


@dataclass(frozen=True, slots=True)
class Cascade:
    """The models of one generation under one configuration."""

    coarse: Model | None
    fine: Model | None
    config: CascadeConfig

    def rank(
        self, tensors: Tensors, page_size: int, seed: int, budget: Budget | None = None
    ) -> Ranking:
        """Rank the candidates of one request. seed: of the draw of rejects, the request id.

        budget: the request's time, None for as much as it takes.
        """
        budget = budget or Budget(StageCosts(), math.inf)
        n = len(tensors.item_slots)
        coarse = np.full(n, np.nan, np.float32)  # (N,)
        if self.coarse is not None:
            if not budget.affords("coarse", n):
                return self._unscored(n, page_size)
            coarse = logits_of(self.coarse, tensors)
            budget.done("coarse", n)
        ranked = self._best(coarse)  # (M,)
        drawn, chance = self._draw(n, ranked, seed)
        if self.fine is None:
            return self._by_coarse(ranked, coarse, page_size, self._lacking())
        if not budget.affords("fine", len(ranked) + len(drawn)):
            if self.coarse is None:
                return self._unscored(n, page_size)
            return self._by_coarse(ranked, coarse, page_size, Degraded.FINE_SKIPPED)
        fine = np.sort(np.concatenate([ranked, drawn]))  # (Nf,)
        tasks = sigmoid(logits_of(self.fine, tensors, fine))  # (Nf, T)
        final = tasks @ self.fine.weights  # (Nf,)
        is_drawn = np.isin(fine, drawn)  # (Nf,)
        order = _order(final)
        page = order[~is_drawn[order]][:page_size]  # (K,)
        probability = np.where(is_drawn, np.float32(chance), np.float32(1))  # (Nf,)
        budget.done("fine", len(fine))
        return Ranking(fine, coarse, tasks, final, probability, page, self._lacking())

    def stages(self, n: int) -> tuple[tuple[Stage, int], ...]:
        """What ranking n candidates in full consists of, each with its units."""
        coarse: tuple[tuple[Stage, int], ...] = (("coarse", n),) if self.coarse else ()
        return (*coarse, ("fine", min(n, self.config.fine_limit))) if self.fine else coarse

    def _lacking(self) -> Degraded:
        """What every request lacks under these models."""
        if self.fine is None:
            return Degraded.NO_FINE_MODEL if self.coarse else Degraded.NO_MODEL
        return Degraded(0) if self.coarse else Degraded.NO_COARSE_MODEL

    def _unscored(self, n: int, page_size: int) -> Ranking:
        return callers_order(n, page_size, self.config.fine_limit, Degraded.DEADLINE)

    def _by_coarse(self, ranked: I64, coarse: F32, page_size: int, degraded: Degraded) -> Ranking:
        """The page without a fine score: the best of the coarse stage."""
        fine = np.sort(ranked)  # (M,)
        return Ranking(
            fine=fine,
            coarse=coarse,
            tasks=np.zeros((len(fine), 0), np.float32),
            final=coarse[fine],
            draw_probability=np.ones(len(fine), np.float32),
            page=_order(coarse[fine])[:page_size],
            degraded=degraded,
        )

    def _best(self, coarse: F32) -> I64:
        """Places of the candidates for the fine stage, at most M."""
        if len(coarse) <= self.config.fine_limit:
            return np.arange(len(coarse))
        return _order(coarse)[: self.config.fine_limit]

    def _draw(self, n: int, ranked: I64, seed: int) -> tuple[I64, float]:
        """Places of the drawn rejects, and the chance that each reject had over all requests."""
        nobody, count = np.empty(0, np.int64), self.config.draw_count
        if self.fine is None or not count or len(ranked) == n:
            return nobody, 1.0
        generator = np.random.Generator(np.random.PCG64(seed))
        if generator.random() >= self.config.draw_share:
            return nobody, 1.0
        rejects = np.setdiff1d(np.arange(n), ranked, assume_unique=True)
        count = min(count, len(rejects))
        drawn = generator.choice(rejects, count, replace=False, shuffle=False)
        return drawn, self.config.draw_share * count / len(rejects)


def callers_order(n: int, page_size: int, fine_limit: int, degraded: Degraded) -> Ranking:
    """The answer without any score: the first candidates in the order they came."""
    fine = np.arange(min(n, fine_limit))
    nan = np.full(n, np.nan, np.float32)
    return Ranking(
        fine=fine,
        coarse=nan,
        tasks=np.zeros((len(fine), 0), np.float32),
        final=nan[fine],
        draw_probability=np.ones(len(fine), np.float32),
        page=fine[:page_size],
        degraded=degraded,
    )


def sigmoid(logits: F32) -> F32:
    """Probabilities; the same function for serving and for rebuilding from the log."""
    turned = np.negative(logits)
    np.exp(np.minimum(turned, _LARGEST, out=turned), out=turned)
    turned += 1
    return np.reciprocal(turned, out=turned)


def _order(scores: F32) -> I64:
    """Places by descending score; ties and NaN (last) in the caller's order."""
    return np.argsort(-scores, kind="stable")  # NaN sorts last
