"""The cascade against a slow one, and what each missing model makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.program import ServiceProgram
from aggregation.tensors import Tensors
from predictor.budget import Budget, Stage, StageCosts
from predictor.cascade import Cascade, CascadeConfig, inputs_of, sigmoid
from predictor.generation import Generations
from predictor.package import Model, load_package
from schemas.ranklog import Degraded
from tests.predictor.support import ITEMS, NOW_MS, PLAN, USERS, publish, world

Models = tuple[Model, Model]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root, generation = tmp_path_factory.mktemp("packages"), Generations(PLAN, "ranking").current
    coarse, fine = (
        load_package(publish(root, kind), generation.expected(kind))
        for kind in ("two_tower", "fine")
    )
    return coarse, fine


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    program, rows = ServiceProgram(PLAN, "ranking"), world()
    raw = [rows.get(key) for key in program.keys(USERS[0], ITEMS)]
    return program.assemble(raw, USERS[0], ITEMS, NOW_MS).tensors


def slow_page(model: Model, tensors: Tensors, places: list[int], size: int) -> list[int]:
    """Score one by one in Python, sort by (score descending, place)."""
    logits = model.logits(inputs_of(tensors, model.network.spec.inputs))
    if logits.ndim == 1:
        scores = {place: float(logits[place]) for place in places}
    else:
        weights = model.weights.tolist()
        scores = {
            place: sum(
                weight / (1 + np.exp(-float(logit)))
                for weight, logit in zip(weights, logits[place], strict=True)
            )
            for place in places
        }
    return sorted(places, key=lambda place: (-scores[place], place))[:size]


@pytest.mark.parametrize("limit", [1, 7, 40, 1000])
def test_two_stages_equal_the_slow_cascade(limit: int, models: Models, tensors: Tensors) -> None:
    coarse, fine = models
    ranking = Cascade(coarse, fine, CascadeConfig(limit)).rank(tensors, 5, seed=0)
    passed = slow_page(coarse, tensors, list(range(40)), limit)
    assert ranking.fine.tolist() == sorted(passed)
    assert ranking.fine[ranking.page].tolist() == slow_page(fine, tensors, passed, 5)
    assert ranking.tasks.shape == (len(passed), 3)
    assert np.isfinite(ranking.coarse).all()
    assert ranking.degraded == 0
    assert (ranking.draw_probability == 1).all()


def test_without_models_the_callers_order(tensors: Tensors) -> None:
    ranking = Cascade(None, None, CascadeConfig(10)).rank(tensors, 4, seed=0)
    assert ranking.fine[ranking.page].tolist() == [0, 1, 2, 3]
    assert ranking.fine.tolist() == list(range(10))
    assert np.isnan(ranking.coarse).all()
    assert np.isnan(ranking.final).all()
    assert ranking.tasks.shape == (10, 0)
    assert ranking.degraded == Degraded.NO_MODEL


def test_with_one_model_of_the_two(models: Models, tensors: Tensors) -> None:
    coarse, fine = models
    ranking = Cascade(coarse, None, CascadeConfig(10)).rank(tensors, 4, seed=0)
    assert ranking.degraded == Degraded.NO_FINE_MODEL
    best = slow_page(coarse, tensors, list(range(40)), 4)
    assert ranking.fine[ranking.page].tolist() == best
    np.testing.assert_array_equal(ranking.final, ranking.coarse[ranking.fine])
    ranking = Cascade(None, fine, CascadeConfig(10)).rank(tensors, 4, seed=0)
    assert ranking.degraded == Degraded.NO_COARSE_MODEL
    assert ranking.fine.tolist() == list(range(10))


@given(seed=st.integers(0, 2**128 - 1))
def test_drawn_rejects_are_scored_and_never_shown(
    seed: int, models: Models, tensors: Tensors
) -> None:
    coarse, fine = models
    config = CascadeConfig(fine_limit=10, draw_share=0.5, draw_count=3)
    ranking = Cascade(coarse, fine, config).rank(tensors, 10, seed)
    drawn = ranking.draw_probability < 1
    assert drawn.sum() in (0, 3)
    np.testing.assert_allclose(ranking.draw_probability[drawn], 0.5 * 3 / 30)
    assert not drawn[ranking.page].any()
    assert len(ranking.page) == 10
    passed = slow_page(coarse, tensors, list(range(40)), 10)
    assert set(ranking.fine[~drawn].tolist()) == set(passed)
    again = Cascade(coarse, fine, config).rank(tensors, 10, seed)
    np.testing.assert_array_equal(again.fine, ranking.fine)


def test_the_draw_is_uniform(models: Models, tensors: Tensors) -> None:
    config = CascadeConfig(fine_limit=35, draw_share=0.5, draw_count=2)
    cascade, counts, sampled = Cascade(*models, config), np.zeros(40), 0
    for seed in range(400):
        ranking = cascade.rank(tensors, 1, seed)
        drawn = ranking.fine[ranking.draw_probability < 1]
        counts[drawn] += 1
        sampled += len(drawn) > 0
    assert 150 < sampled < 250
    drawn_ones = counts[counts > 0]
    assert len(drawn_ones) == 5
    assert drawn_ones.min() > 0.2 * 2 * sampled * 0.6


def test_swaps_keep_what_fits(models: Models, tmp_path: Path) -> None:
    generations = Generations(PLAN, "ranking")
    pinned = generations.current
    coarse, fine = models
    generations.use_models({"two_tower": coarse})
    generations.use_models({"fine": fine})
    assert pinned.coarse is None
    assert generations.current.number == 3
    assert generations.current.coarse is coarse
    same = generations.use_plan(PLAN)
    assert (same.coarse, same.fine) == (coarse, fine)


def test_probabilities_of_any_logit() -> None:
    logits = np.array([[-1e30, -100.0, -20.0], [-1.0, 0.0, 1.0], [20.0, 1e30, np.nan]], np.float32)
    found = sigmoid(logits)
    with np.errstate(over="ignore"):
        wanted = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-37)
    assert np.isnan(logits[2, 2])


class Hurry(Budget):
    """Affords only what it is told."""

    def __init__(self, *affordable: Stage) -> None:
        super().__init__(StageCosts(), 0.0)
        self.affordable = affordable

    def affords(self, stage: Stage, units: int) -> bool:
        return stage in self.affordable


def test_without_time_for_the_fine_model_the_coarse_score_decides(
    models: Models, tensors: Tensors
) -> None:
    coarse, fine = models
    cascade = Cascade(coarse, fine, CascadeConfig(fine_limit=7, draw_share=1.0, draw_count=2))
    hurried, alone = (
        cascade.rank(tensors, 5, 0, Hurry("coarse")),
        Cascade(coarse, None, cascade.config),
    )
    expected = alone.rank(tensors, 5, 0)
    assert hurried.degraded == Degraded.FINE_SKIPPED
    assert hurried.tasks.shape == (7, 0)
    assert (hurried.draw_probability == 1).all()
    for name in ("fine", "coarse", "final", "page"):
        np.testing.assert_array_equal(getattr(hurried, name), getattr(expected, name))


def test_without_time_for_any_model_the_callers_order(models: Models, tensors: Tensors) -> None:
    coarse, fine = models
    neither = Cascade(coarse, fine, CascadeConfig()).rank(tensors, 5, 0, Hurry("fine"))
    no_coarse = Cascade(None, fine, CascadeConfig()).rank(tensors, 5, 0, Hurry())
    for ranking in (neither, no_coarse):
        assert ranking.degraded == Degraded.DEADLINE
        assert ranking.page.tolist() == [0, 1, 2, 3, 4]
        assert np.isnan(ranking.final).all()


def test_stages_are_what_a_full_ranking_takes(models: Models) -> None:
    coarse, fine = models
    config = CascadeConfig(fine_limit=30)
    assert Cascade(coarse, fine, config).stages(50) == (("coarse", 50), ("fine", 30))
    assert Cascade(None, fine, config).stages(20) == (("fine", 20),)
    assert Cascade(None, None, config).stages(20) == ()
