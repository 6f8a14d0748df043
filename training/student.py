"""The student: a two-tower that learns clicks from users, and the order of all from the teacher.

Symbols: U requests of a batch, N their candidates, D vector width, C candidates of the dataset.

The hard labels exist only for exposed candidates. The soft ones, the teacher's `rescored` click
logits over all logged candidates, exposed or not, show the student what a coarse ranker works on:
videos that nobody was shown. Temperature t softens both sides and t² keeps the gradient's scale, as
in Hinton et al., "Distilling the Knowledge in a Neural Network" (2015):

    loss = (1 - share) · BCE(s, click) + share · t² · BCE(s / t, sigmoid(teacher / t))
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from predictor.networks import TwoTower
from predictor.spec import TowerSpec
from training.batches import page_inputs, pair_inputs
from training.compact import start_embeddings
from training.dataset import Dataset
from training.loop import CLICK, Fit, Lesson, Schedule, Step, fit, log_odds
from training.teacher import SCORING_BATCH


@dataclass(frozen=True)
class StudentConfig:
    """The student's network (see TowerSpec) and its schedule; a step's rows are requests.

    share: weight of the teacher's part of the loss, 0 for hard labels alone.
    """

    embedding: int = 16
    hidden: tuple[int, ...] = (64,)
    dimension: int = 32
    dropout: float = 0.3
    schedule: Schedule = field(
        default_factory=lambda: Schedule(2e-3, 256, 5, 2, embedding_speed=3.0, memory=0.99)
    )
    share: float = 0.8
    temperature: float = 2.0


def train_student(
    lesson: Lesson, config: StudentConfig, taught: NDArray[np.float32] | None
) -> tuple[TwoTower, Fit]:
    """Train a two-tower; call it within `training.loop.reproducible`. Raises RecordError.

    taught: (C,) the teacher's click logit of every candidate of the dataset, those outside the
    training part unread; None for a student of hard labels alone.
    """
    dataset, split = lesson.dataset, lesson.split
    network = TwoTower(
        TowerSpec(
            lesson.inputs,
            embedding=config.embedding,
            hidden=config.hidden,
            dimension=config.dimension,
            dropout=config.dropout,
        )
    )
    start_embeddings(network, dataset, split.train)
    examples = dataset.examples(split.train)  # (n,) i64
    _start_bias(network, float(log_odds(dataset.labels[examples])[CLICK]))

    def loss(requests: NDArray[np.int64]) -> Tensor:
        return _loss(network, dataset, np.sort(requests), config, taught)

    def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return coarse_scores(network, dataset, rows)  # (v,) f32

    rows = split.train if len(examples) else split.train[:0]
    fitted = fit(network, lesson, config.schedule, Step("student", rows, loss, score))
    return network, fitted


def _loss(
    network: TwoTower,
    dataset: Dataset,
    requests: NDArray[np.int64],
    config: StudentConfig,
    taught: NDArray[np.float32] | None,
) -> Tensor:
    inputs, candidates, item_of = page_inputs(dataset, requests)
    users = network.user_vectors(inputs)[inputs.user_of]  # (N, D)
    items = network.item_vectors(inputs)[item_of]  # (N, D)
    scores = (users * items).sum(1)  # (N,)
    exposed = torch.from_numpy(np.flatnonzero(dataset.exposed[candidates]))  # (e,) i64
    clicks = torch.from_numpy(dataset.labels[candidates, CLICK]).float()  # (N,)
    hard = functional.binary_cross_entropy_with_logits(
        scores[exposed], clicks[exposed], reduction="sum"
    ) / max(1, len(exposed))
    if taught is None or config.share == 0:
        return hard
    heat = config.temperature
    target = torch.sigmoid(torch.from_numpy(taught[candidates]) / heat)  # (N,)
    soft = functional.binary_cross_entropy_with_logits(scores / heat, target) * heat**2
    return (1 - config.share) * hard + config.share * soft


def coarse_scores(
    network: TwoTower, dataset: Dataset, candidates: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The student's score of each candidate. Returns (n,) f32."""
    network.eval()
    scores = np.empty(len(candidates), np.float32)  # (n,)
    with torch.inference_mode():
        for at in range(0, len(candidates), SCORING_BATCH):
            rows = candidates[at : at + SCORING_BATCH]
            scores[at : at + len(rows)] = network(pair_inputs(dataset, rows)).numpy()
    return scores


def _start_bias(network: TwoTower, bias: float) -> None:
    """The item vector's last element is the item's bias: let it begin at the click rate's odds."""
    last = network.item_mlp[-1]
    assert isinstance(last, nn.Linear)
    last.bias.data[-1] = bias
