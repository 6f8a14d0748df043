"""What both trainings share: the lesson, epochs with early stopping, reproducible randomness."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predictor.networks import Network
from predictor.spec import InputSpec
from schemas.errors import RecordError
from schemas.ranklog import TASKS
from training.dataset import Dataset
from training.evaluate import auc, gauc

CLICK: Final = TASKS.index("click")


class Progress(Protocol):
    """Called as work goes on: `done` of `total` steps of `stage`, with a line for people."""

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """Must return quickly; its exceptions end the training."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """The Progress that says nothing."""


@dataclass(frozen=True)
class Split:
    """The requests to learn from, and those that say when to stop; rows of the dataset."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


@dataclass(frozen=True)
class Lesson:
    """What a network learns from. inputs: the spec of the dataset's ids."""

    dataset: Dataset
    split: Split
    inputs: InputSpec
    generator: np.random.Generator
    progress: Progress = silent


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    learning_rate: of the dense layers; embeddings learn embedding_speed times as fast, since a row
    of theirs is in few batches. batch: rows a step. patience: epochs without a better validation.
    memory: of the moving average of weights, per step; the average is what is kept.
    """

    learning_rate: float
    batch: int
    epochs: int
    patience: int
    weight_decay: float = 1e-2
    embedding_decay: float = 0.3
    embedding_speed: float = 10.0
    memory: float = 0.98


@dataclass(frozen=True)
class Epoch:
    """One pass over the training part.

    loss: its mean. validation_auc, validation_gauc: of clicks, by the averaged weights after it;
    NaN where the validation part does not define them.
    """

    loss: float
    validation_auc: float
    validation_gauc: float

    @property
    def quality(self) -> float:
        """What epochs are compared by: half telling users apart, half ranking within a user."""
        known = [v for v in (self.validation_auc, self.validation_gauc) if not np.isnan(v)]
        return sum(known) / len(known) if known else float("nan")


@dataclass(frozen=True)
class Fit:
    """How a training went. best: index of the epoch whose weights were kept."""

    epochs: tuple[Epoch, ...]
    best: int


@dataclass(frozen=True)
class Step:
    """What one kind of training does. rows: what is shuffled and cut into batches.

    loss: of a batch of rows. score: the click score of given candidates, as the network is now.
    """

    stage: str
    rows: NDArray[np.int64]
    loss: Callable[[NDArray[np.int64]], Tensor]
    score: Callable[[NDArray[np.int64]], NDArray[np.float32]]


def fit(network: Network, lesson: Lesson, schedule: Schedule, step: Step) -> Fit:
    """Train until the schedule or patience ends; the network is left with its best epoch's weights.

    Raises RecordError when there is nothing to learn from.
    """
    if not len(step.rows):
        raise RecordError(
            f"training.{step.stage}",
            required="at least one exposed candidate in the training part",
            got="none",
            do="log more pages, or validate on less of them: --validation-ms",
        )
    optimizer = optimiser(network, schedule)
    stop = _EarlyStop(network, schedule.patience)
    average = _Average(network, schedule.memory)
    for number in range(schedule.epochs):
        network.train()
        total = 0.0
        for rows in shuffled(step.rows, schedule.batch, lesson.generator):
            loss = step.loss(rows)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            average.update()
            total += float(loss.detach()) * len(rows)
        with average.applied():
            epoch = _validated(total / len(step.rows), lesson, step)
            done = stop.add(epoch)
        note = f"loss {epoch.loss:.4f}, validation AUC {epoch.validation_auc:.4f}"
        lesson.progress(step.stage, number + 1, schedule.epochs, note)
        if done:
            break
    return stop.restore()


def _validated(loss: float, lesson: Lesson, step: Step) -> Epoch:
    dataset = lesson.dataset
    rows = dataset.examples(lesson.split.validation)  # (v,) i64
    clicks, scores = dataset.labels[rows, CLICK], step.score(rows)  # (v,) bool, (v,) f32
    return Epoch(loss, auc(clicks, scores), gauc(clicks, scores, dataset.users_of(rows)))


def shuffled(
    rows: NDArray[np.int64], size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """The rows (n,) in random order, `size` at a time; the last batch may be smaller."""
    order = generator.permutation(rows)
    for at in range(0, len(order), size):
        yield order[at : at + size]


class _EarlyStop:
    """Keeps the weights of the best epoch; `add` says when `patience` epochs brought nothing."""

    def __init__(self, network: Network, patience: int) -> None:
        self._network = network
        self._patience = patience
        self._weights: dict[str, Any] = {}
        self._epochs: list[Epoch] = []
        self._best = -1

    def add(self, epoch: Epoch) -> bool:
        """Note an epoch; True when training should end.

        Without a validation part every quality is NaN, and the last epoch is kept.
        """
        self._epochs.append(epoch)
        best = self._epochs[self._best].quality if self._best >= 0 else np.nan
        if np.isnan(best) or epoch.quality > best:
            self._best = len(self._epochs) - 1
            self._weights = copy.deepcopy(self._network.state_dict())
        return len(self._epochs) - 1 - self._best >= self._patience

    def restore(self) -> Fit:
        """Give the network the best epoch's weights."""
        self._network.load_state_dict(self._weights)
        self._network.eval()
        return Fit(tuple(self._epochs), self._best)


class _Average:
    """The moving average of a network's weights: flatter and better than the last step's.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992).
    """

    def __init__(self, network: Network, memory: float) -> None:
        self._weights = list(network.parameters())
        self._memory = memory
        self._average = [weight.detach().clone() for weight in self._weights]

    def update(self) -> None:
        """Take the weights in; called after each step."""
        with torch.no_grad():
            for average, weight in zip(self._average, self._weights, strict=True):
                average.lerp_(weight, 1 - self._memory)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; training goes on from its own."""
        own = [weight.detach().clone() for weight in self._weights]
        self._put(self._average)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)


def optimiser(network: Network, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW with a decay of its own for the embeddings: most of their rows get few gradients."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        groups[name.startswith("embeddings.")].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": groups[True],
                "lr": schedule.learning_rate * schedule.embedding_speed,
                "weight_decay": schedule.embedding_decay,
            },
            {"params": groups[False], "weight_decay": schedule.weight_decay},
        ],
        lr=schedule.learning_rate,
        fused=True,
    )


def log_odds(labels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(n, T) labels → (T,) log odds of each task's rate, smoothed; where a bias should begin."""
    positives = labels.sum(axis=0)  # (T,) i64
    odds = (positives + 1) / (len(labels) - positives + 1)  # (T,) f64
    logs: NDArray[np.float32] = np.log(odds).astype(np.float32)  # (T,) f32
    return logs


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[np.random.Generator]:
    """Inside, the same seed and thread count give the same weights on one machine.

    Yields a numpy generator of that seed. torch's generator, thread count and determinism are put
    back afterwards.
    """
    threads_before = torch.get_num_threads()
    strict_before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        try:
            yield np.random.default_rng(seed)
        finally:
            torch.use_deterministic_algorithms(strict_before)
            torch.set_num_threads(threads_before)
