"""The teacher: the fine network, learnt from what users did with what they were shown.

Symbols: R requests of the dataset, N candidates of a batch, T tasks.

Every task is learnt at once; a candidate that was not exposed has no label and no weight (masked):
an unseen video without a click says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from predictor.networks import FineNet
from predictor.spec import FineSpec
from schemas.ranklog import TASKS
from training.batches import pair_inputs
from training.compact import start_embeddings
from training.dataset import Dataset
from training.loop import CLICK, Fit, Lesson, Schedule, Step, fit, log_odds

SCORING_BATCH: Final = 16_384  # candidates scored at once


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher's network (see FineSpec) and its schedule; a step's rows are candidates."""

    embedding: int = 16
    hidden: int = 64
    attention: int = 16
    shared_experts: int = 2
    expert: int = 32
    dropout: float = 0.5
    schedule: Schedule = field(default_factory=lambda: Schedule(5e-4, 256, epochs=10, patience=2))


def train_teacher(lesson: Lesson, config: TeacherConfig) -> tuple[FineNet, Fit]:
    """Train a fine network; call it within `training.loop.reproducible`. Raises RecordError."""
    dataset, split = lesson.dataset, lesson.split
    network = FineNet(
        FineSpec(
            lesson.inputs,
            embedding=config.embedding,
            hidden=config.hidden,
            attention=config.attention,
            shared_experts=config.shared_experts,
            expert=config.expert,
            dropout=config.dropout,
        )
    )
    start_embeddings(network, dataset, split.train)
    examples = dataset.examples(split.train)  # (n,) i64
    network.bias.data = torch.from_numpy(log_odds(dataset.labels[examples]))  # (T,)

    def loss(rows: NDArray[np.int64]) -> Tensor:
        logits = network(pair_inputs(dataset, rows))  # (N, T)
        labels = torch.from_numpy(dataset.labels[rows]).float()  # (N, T)
        return masked_loss(logits, labels, torch.from_numpy(dataset.exposed[rows]))

    def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return rescore(network, dataset, rows)[:, CLICK]  # (v,) f32

    fitted = fit(network, lesson, config.schedule, Step("teacher", examples, loss, score))
    return network, fitted


def masked_loss(logits: Tensor, labels: Tensor, exposed: Tensor) -> Tensor:
    """Mean binary cross entropy over exposed candidates and tasks; 0 where none is exposed.

    logits, labels: (N, T) f32. exposed: (N,) bool.
    """
    each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")  # (N, T)
    weight = exposed[:, None].float()  # (N, 1)
    return (each * weight).sum() / (weight.sum() * logits.shape[1]).clamp(min=1.0)


def rescore(
    network: FineNet, dataset: Dataset, candidates: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The teacher's logits for logged candidates, exposed or not. Returns (n, T) f32.

    These are scores by a model that did not serve the request: `rescored`, never to be confused
    with what the log says a user was ranked by.
    """
    network.eval()
    logits = np.empty((len(candidates), len(TASKS)), np.float32)  # (n, T)
    # Attention costs the longest sequence of a batch: let those of one length go together.
    longest = np.zeros(len(dataset.now_ms), np.int32)  # (R,)
    for lengths in dataset.tensors.lengths.values():
        longest = np.maximum(longest, lengths)  # (R,)
    order = np.argsort(longest[dataset.request_row[candidates]], kind="stable")  # (n,) i64
    with torch.inference_mode():
        for at in range(0, len(candidates), SCORING_BATCH):
            places = order[at : at + SCORING_BATCH]
            logits[places] = network(pair_inputs(dataset, candidates[places])).numpy()
    return logits
