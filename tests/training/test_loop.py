"""Losses, early stopping, averaging, and what `reproducible` leaves behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from predictor.networks import TwoTower
from predictor.spec import TowerSpec, input_spec
from schemas.errors import RecordError
from tests.training.world import PROGRAM, TEST_MS
from training.compact import compact
from training.dataset import Dataset
from training.loop import (
    Epoch,
    Lesson,
    Schedule,
    Split,
    Step,
    _Average,
    _EarlyStop,
    fit,
    log_odds,
    reproducible,
    shuffled,
)
from training.student import StudentConfig, coarse_scores, train_student
from training.teacher import masked_loss


def test_unexposed_candidates_have_no_weight() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 3, requires_grad=True)
    labels = (torch.rand(6, 3) < 0.5).float()
    exposed = torch.tensor([True, False, True, True, False, False])
    loss = masked_loss(logits, labels, exposed)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[~exposed].any()
    assert gradient[exposed].all()
    alone = torch.nn.functional.binary_cross_entropy_with_logits(logits[exposed], labels[exposed])
    assert loss.item() == pytest.approx(alone.item())
    assert masked_loss(logits, labels, torch.zeros(6, dtype=torch.bool)).item() == 0


def test_log_odds_of_a_rate_and_of_nothing() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 0]], bool)
    assert log_odds(labels) == pytest.approx([math.log(3 / 2), math.log(1 / 4)])
    assert log_odds(labels[:0]) == pytest.approx([0, 0])


def test_every_row_once_an_epoch() -> None:
    rows = np.arange(100, 110)
    batches = list(shuffled(rows, 4, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches)) == rows.tolist()
    assert np.concatenate(batches).tolist() != rows.tolist()


def network() -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(TowerSpec(input_spec(PROGRAM.service), embedding=1, hidden=(2,), dimension=2))


@pytest.mark.parametrize(
    ("qualities", "patience", "best", "ended"),
    [
        ([0.6, 0.7, 0.65, 0.69], 2, 1, 4),
        ([0.6, 0.5], 1, 0, 2),
        ([0.5, 0.6, 0.7], 1, 2, None),
        ([math.nan, math.nan, math.nan], 9, 2, None),
    ],
)
def test_the_best_epoch_is_kept(
    qualities: list[float], patience: int, best: int, ended: int | None
) -> None:
    model = network()
    stop = _EarlyStop(model, patience)
    bias = model.item_mlp[-1].bias
    assert isinstance(bias, torch.nn.Parameter)
    done = None
    for number, quality in enumerate(qualities):
        bias.data.fill_(number)
        if stop.add(Epoch(0.0, quality, quality)) and done is None:
            done = number + 1
    fitted = stop.restore()
    assert (fitted.best, done) == (best, ended)
    assert bias.data[0] == best
    assert not model.training


def test_quality_needs_only_what_is_defined() -> None:
    assert Epoch(0, 0.6, 0.5).quality == pytest.approx(0.55)
    assert Epoch(0, 0.6, math.nan).quality == 0.6
    assert math.isnan(Epoch(0, math.nan, math.nan).quality)


def test_the_average_is_applied_and_taken_back() -> None:
    model = network()
    bias = model.item_mlp[-1].bias
    assert isinstance(bias, torch.nn.Parameter)
    bias.data.fill_(0.0)
    average = _Average(model, 0.5)
    for value in (4.0, 8.0):
        bias.data.fill_(value)
        average.update()
    with average.applied():
        assert bias.data[0] == 5.0  # 0 → 2 → 5
    assert bias.data[0] == 8.0


def test_nothing_to_learn_from_says_so(dataset: Dataset) -> None:
    nobody = Split(np.zeros(0, np.int64), np.zeros(0, np.int64))
    lesson = Lesson(dataset, nobody, input_spec(PROGRAM.service), np.random.default_rng(0))
    step = Step(
        "teacher", nobody.train, lambda rows: torch.zeros(1), lambda rows: np.zeros(0, np.float32)
    )
    with pytest.raises(RecordError, match=r"training\.teacher: needs at least one exposed"):
        fit(network(), lesson, Schedule(1e-3, 8, 1, 1), step)


def test_reproducible_leaves_torch_as_it_was() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with reproducible(1, 1):
        first = torch.rand(3)
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    with reproducible(1, 1):
        assert torch.rand(3).equal(first)
    assert torch.get_num_threads() == threads
    assert torch.random.get_rng_state().equal(state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_student_learns_unexposed_candidates_from_the_teacher(dataset: Dataset) -> None:
    """A teacher that sees something in videos nobody was shown: only its pupil can know."""
    small = compact(dataset, input_spec(PROGRAM.service))
    train, rest = dataset.requests(0, TEST_MS), dataset.requests(TEST_MS, 1 << 62)
    taught = np.where(dataset.item_ids % 5 == 0, 3.0, -3.0).astype(np.float32)
    unseen = np.flatnonzero(~dataset.exposed & (dataset.now_ms[dataset.request_row] >= TEST_MS))
    gaps = {}
    for name, logits in (("taught", taught), ("alone", None)):
        with reproducible(0, 1) as generator:
            lesson = Lesson(small.dataset, Split(train, rest), small.inputs, generator)
            schedule = Schedule(5e-3, 64, 8, 8)
            student, _ = train_student(lesson, StudentConfig(schedule=schedule), logits)
        scores = coarse_scores(student, small.dataset, unseen)
        high = dataset.item_ids[unseen] % 5 == 0
        gaps[name] = scores[high].mean() - scores[~high].mean()
    assert gaps["taught"] > 1.0
    assert abs(gaps["alone"]) < 0.8
