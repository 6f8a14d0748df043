"""The whole training: log → training set → teacher → student → packages.

    join_log → dataset_of → compact → teacher → rescore → student → widen → packages → report

The log is split by time, never at random: the networks learn from the first part, and the last
`validation_ms` say when to stop. What comes after is untouched; `training.assess` measures there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregation.program import ServiceProgram
from audit.join import JoinCounts, JoinQuery, LogPaths, join_log
from predictor.networks import Network
from predictor.package import PackageDraft, publish_package, write_package
from predictor.spec import Kind, input_spec
from schemas.errors import RecordError
from schemas.plan import Plan
from training.batches import request_inputs
from training.compact import Compact, compact, widen
from training.dataset import Dataset, dataset_of
from training.loop import CLICK, Fit, Lesson, Progress, Split, reproducible, silent
from training.student import StudentConfig, train_student
from training.teacher import TeacherConfig, rescore, train_teacher

DAY_MS: Final = 86_400_000
GOLDEN_REQUESTS: Final = 8
PAGE_WEIGHTS: Final[Mapping[str, float]] = {"click": 1.0, "long_view": 1.0, "like": 2.0}


@dataclass(frozen=True)
class TrainConfig:
    """What to train from, and what.

    data_dir: below it lies `archive/`, as the sinks write it. plan: the one whose fingerprint of
    `service` the log carries. start_ms, end_ms: requests with now_ms in [start, end), with the
    labels that were known at the end; the last validation_ms before the end, or before the last
    request where the log ends earlier, decide when to stop. packages: the directory that the
    service watches. trained_ms: the caller's clock. threads: of torch and DuckDB; two gain little
    here, and lose much beside a busy process. page_weights: of each task in the final score.
    publish: make the packages current.
    """

    data_dir: Path
    packages: Path
    plan: Plan
    service: str
    trained_ms: int
    start_ms: int = 0
    end_ms: int = 1 << 62
    validation_ms: int = DAY_MS
    seed: int = 0
    threads: int = 1
    publish: bool = True
    page_weights: Mapping[str, float] = field(default_factory=lambda: dict(PAGE_WEIGHTS))
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)


@dataclass(frozen=True)
class TrainReport:
    """What came of it.

    joined: the label join's counts. examples: exposed candidates learnt from. validation: those
    that said when to stop. rescored: candidates the teacher scored for the student. packages: the
    directory of each kind.
    """

    joined: JoinCounts
    examples: int
    validation: int
    rescored: int
    teacher: Fit
    student: Fit
    packages: dict[Kind, Path]


def train(config: TrainConfig, progress: Progress = silent) -> TrainReport:
    """Train both models and write their packages.

    Deterministic in the log, the configuration and the machine. Raises RecordError where the log
    has nothing to learn from, PackageError where the packages cannot be written.
    """
    program = ServiceProgram(config.plan, config.service)
    query = JoinQuery(
        config.service,
        program.service.fingerprint,
        config.start_ms,
        config.end_ms,
        known_ms=config.end_ms,
        threads=config.threads,
    )
    progress("join", 0, 1, "labels by request id and item")
    log = join_log(LogPaths.under(config.data_dir), query)
    full = dataset_of(log, program)
    note = f"{log.counts.requests:,} requests, {log.counts.exposed:,} exposed candidates"
    progress("join", 1, 1, note)
    split = split_by_time(full, config.end_ms, config.validation_ms)
    small = compact(full, input_spec(program.service))
    with reproducible(config.seed, config.threads) as generator:
        lesson = Lesson(small.dataset, split, small.inputs, generator, progress)
        teacher, teacher_fit = train_teacher(lesson, config.teacher)
        progress("rescore", 0, 1, "the teacher's logits for every logged candidate")
        everything = np.arange(len(full.item_ids))  # (C,)
        taught = rescore(teacher, small.dataset, everything)[:, CLICK]  # (C,) f32
        progress("rescore", 1, 1, f"{len(taught):,} candidates")
        student, student_fit = train_student(lesson, config.student, taught)
        trained: dict[Kind, tuple[Network, Fit]] = {
            "fine": (teacher, teacher_fit),
            "two_tower": (student, student_fit),
        }
        packages = _write(config, small, full, split, trained)
    return TrainReport(
        joined=log.counts,
        examples=len(full.examples(split.train)),
        validation=len(full.examples(split.validation)),
        rescored=len(taught),
        teacher=teacher_fit,
        student=student_fit,
        packages=packages,
    )


def split_by_time(dataset: Dataset, end_ms: int, validation_ms: int) -> Split:
    """Validation: the last `validation_ms` before end_ms, or before the last request if earlier.

    Raises RecordError for a dataset without requests.
    """
    if not len(dataset.now_ms):
        raise RecordError(
            "training.log",
            required="ranked requests of this service and fingerprint",
            got="none",
            do="rank requests and let the sink write them, or check start_ms and end_ms",
        )
    end = min(end_ms, int(dataset.now_ms[-1]) + 1)
    begin = end - validation_ms
    return Split(dataset.requests(0, begin), dataset.requests(begin, end))


def _write(
    config: TrainConfig,
    small: Compact,
    full: Dataset,
    split: Split,
    trained: Mapping[Kind, tuple[Network, Fit]],
) -> dict[Kind, Path]:
    """Write both packages, then make both current."""
    requests = [request_inputs(full, int(row)) for row in golden_requests(full, split)]
    packages: dict[Kind, Path] = {}
    for kind, (network, fitted) in trained.items():
        best = fitted.epochs[fitted.best]
        measured = {
            "train_loss": best.loss,
            "validation_auc": best.validation_auc,
            "validation_gauc": best.validation_gauc,
        }
        draft = PackageDraft(
            network=widen(network, small),
            service=config.service,
            fingerprint=config.plan.service(config.service).fingerprint,
            requests=requests,
            trained_ms=config.trained_ms,
            # A validation part of one class has no AUC, and a package no figure for it.
            metrics={name: value for name, value in measured.items() if math.isfinite(value)},
            score=config.page_weights if kind == "fine" else {},
        )
        packages[kind] = write_package(config.packages, draft)
    if config.publish:
        for path in packages.values():
            publish_package(path)
    return packages


def golden_requests(dataset: Dataset, split: Split) -> NDArray[np.int64]:
    """Rows (g,) of the requests that a package carries, 8 at most: real ones, spread over the
    longest histories and the shortest, from the newest part that has any."""
    rows = split.validation if len(split.validation) else split.train
    rows = rows[dataset.first[rows + 1] > dataset.first[rows]]  # those with a candidate
    history = np.zeros(len(dataset.now_ms), np.int64)  # (R,)
    for lengths in dataset.tensors.lengths.values():
        history += lengths
    by_history = rows[np.argsort(history[rows], kind="stable")]
    spread = np.linspace(0, len(by_history) - 1, min(GOLDEN_REQUESTS, len(by_history)))
    return by_history[spread.astype(np.int64)]
