"""What the packages are worth on days they never saw, beside popularity.

Every exposed candidate of the test part is scored by the packages from its logged values, whoever
ranked it at the time; popularity is fitted on the exposed candidates before, with labels as the
whole log knows them, which can only help it. The two-tower has one score, so it is measured by it
on every task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregation.program import ServiceProgram
from audit.join import JoinCounts, JoinedLog, JoinQuery, LogPaths, join_log
from predictor.card import Expected
from predictor.networks import FineNet
from predictor.package import Model, load_package
from predictor.spec import Kind, input_spec
from schemas.errors import RecordError
from schemas.plan import Plan
from schemas.ranklog import TASKS
from training.dataset import Dataset, dataset_of
from training.evaluate import Evaluation, Groups, evaluate
from training.loop import reproducible
from training.popularity import Popularity
from training.student import coarse_scores
from training.teacher import rescore

POPULARITY: Final = "popularity"


@dataclass(frozen=True)
class AssessConfig:
    """packages: the directory of each kind to measure, as TrainReport gives them.

    Popularity learns from requests with now_ms in [start, split); all are measured on [split, end).
    """

    data_dir: Path
    plan: Plan
    service: str
    packages: Mapping[Kind, Path]
    split_ms: int
    start_ms: int = 0
    end_ms: int = 1 << 62
    replicates: int = 1_000
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Assessment:
    """joined: of both parts. tasks: per task, AUC and GAUCs of each model and minus popularity's.

    live: share of the test examples that the measured fine package itself scored when it served.
    """

    joined: JoinCounts
    tasks: dict[str, Evaluation]
    live: float


def assess(config: AssessConfig) -> Assessment:
    """Measure packages. Raises PackageError for a bad one, RecordError without test examples."""
    program = ServiceProgram(config.plan, config.service)
    models = load_models(program, config.packages)
    query = JoinQuery(
        config.service,
        program.service.fingerprint,
        config.start_ms,
        config.end_ms,
        threads=config.threads,
    )
    log = join_log(LogPaths.under(config.data_dir), query)
    dataset = dataset_of(log, program)
    test = dataset.examples(dataset.requests(config.split_ms, config.end_ms))  # (n,) i64
    if not len(test):
        raise RecordError(
            "assess.log",
            required=f"exposed candidates at or after {config.split_ms}",
            got="none",
            do="replay the days after the split",
        )
    with reproducible(config.seed, config.threads):
        scores = {kind: _scores(model, dataset, test) for kind, model in models.items()}
    before = dataset.examples(dataset.requests(config.start_ms, config.split_ms))
    tasks = {task: _evaluate(config, dataset, task, before, test, scores) for task in TASKS}
    fine = models.get("fine")
    live = 0.0 if fine is None else live_share(log, dataset, test, fine.version)
    return Assessment(log.counts, tasks, live)


def load_models(program: ServiceProgram, packages: Mapping[Kind, Path]) -> dict[Kind, Model]:
    """Load packages made for the program's service. Raises PackageError."""
    service = program.service
    inputs = input_spec(service)
    return {
        kind: load_package(path, Expected(kind, service.name, service.fingerprint, inputs))
        for kind, path in packages.items()
    }


def _scores(model: Model, dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, T) scores of the candidates; a two-tower's one score serves every task."""
    if isinstance(model.network, FineNet):
        return rescore(model.network, dataset, rows)
    return np.repeat(coarse_scores(model.network, dataset, rows)[:, None], len(TASKS), axis=1)


def _evaluate(
    config: AssessConfig,
    dataset: Dataset,
    task: str,
    before: NDArray[np.int64],
    test: NDArray[np.int64],
    scores: Mapping[Kind, NDArray[np.float32]],
) -> Evaluation:
    """One task. before: exposed candidates before the split. test: (n,), those measured. scores:
    (n, T) of each kind."""
    at = TASKS.index(task)
    popularity = Popularity.fit(dataset.item_ids[before], dataset.labels[before, at])
    columns: dict[str, NDArray[np.floating]] = {kind: each[:, at] for kind, each in scores.items()}
    return evaluate(
        dataset.labels[test, at],
        {**columns, POPULARITY: popularity.score(dataset.item_ids[test])},
        Groups(dataset.users_of(test), dataset.request_row[test].astype(np.int64)),
        baseline=POPULARITY,
        replicates=config.replicates,
        seed=config.seed,
    )


def live_share(log: JoinedLog, dataset: Dataset, rows: NDArray[np.int64], version: int) -> float:
    """The share of the candidates in `rows` (n,) that the fine package of that version scored when
    it served: where it had no time to, its version is logged without scores."""
    versions = log.requests.column("fine_version").to_numpy()  # (R,) u64
    scored = log.candidates.column("fine_click").is_valid().to_numpy()  # (C,) bool
    served = versions[dataset.request_row[rows]] == np.uint64(version)  # (n,) bool
    return float(np.mean(served & scored[rows]))
