"""Log in, packages out: what they are worth, what they must not have seen, and twice the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from audit.join import JoinQuery, LogPaths, join_log
from predictor.card import Expected
from predictor.package import current_version, verify_package
from predictor.spec import KINDS, Kind, input_spec
from schemas.errors import PackageError, RecordError
from tests.audit.logs import CLICK, IMPRESSION, Act, record, write_actions, write_records
from tests.training.world import (
    CANDIDATES,
    DAY_MS,
    DAYS,
    END_MS,
    FINGERPRINT,
    PLAN,
    PROGRAM,
    REQUESTS_A_DAY,
    SHOWN,
    START_MS,
    TEST_MS,
    write_world,
)
from training.assess import AssessConfig, Assessment, assess, live_share
from training.dataset import dataset_of
from training.loop import Schedule
from training.run import TrainConfig, TrainReport, train
from training.student import StudentConfig
from training.teacher import TeacherConfig

#: The small world has few steps an epoch: learn faster, remember less.
TEACHER = TeacherConfig(schedule=Schedule(5e-3, 64, 3, 2, embedding_speed=2.0, memory=0.8))
STUDENT = StudentConfig(schedule=Schedule(5e-3, 32, 4, 2, embedding_speed=2.0, memory=0.8))


def config(data_dir: Path, packages: Path, **changes: Any) -> TrainConfig:
    given = TrainConfig(
        data_dir,
        packages,
        PLAN,
        "ranking",
        trained_ms=TEST_MS,
        end_ms=TEST_MS,
        teacher=TEACHER,
        student=STUDENT,
    )
    return replace(given, **changes)


@pytest.fixture(scope="module")
def said() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def report(
    world_dir: Path, tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, int, int]]
) -> TrainReport:
    def progress(stage: str, done: int, total: int, note: str) -> None:
        assert note
        said.append((stage, done, total))

    return train(config(world_dir, tmp_path_factory.mktemp("packages")), progress)


@pytest.fixture(scope="module")
def assessment(world_dir: Path, report: TrainReport) -> Assessment:
    return assess(
        AssessConfig(world_dir, PLAN, "ranking", report.packages, TEST_MS, replicates=200)
    )


def weights(report: TrainReport) -> dict[str, str]:
    return {
        kind: hashlib.sha256((path / "weights.safetensors").read_bytes()).hexdigest()
        for kind, path in report.packages.items()
    }


def test_the_report_counts(report: TrainReport, said: list[tuple[str, int, int]]) -> None:
    days = DAYS - 1
    assert report.joined.requests == days * REQUESTS_A_DAY
    assert report.examples == (days - 1) * REQUESTS_A_DAY * SHOWN
    assert report.validation == REQUESTS_A_DAY * SHOWN
    assert report.rescored == days * REQUESTS_A_DAY * CANDIDATES
    stages = list(dict.fromkeys(stage for stage, _, _ in said))
    assert stages == ["join", "teacher", "rescore", "student"]
    assert all(0 <= done <= total for _, done, total in said)
    for fitted in (report.teacher, report.student):
        assert fitted.epochs[fitted.best].quality == max(e.quality for e in fitted.epochs)
        assert fitted.epochs[0].loss > fitted.epochs[-1].loss


def test_packages_pass_verification_and_are_current(report: TrainReport) -> None:
    assert set(report.packages) == set(KINDS)
    for kind, path in report.packages.items():
        expected = Expected(kind, "ranking", FINGERPRINT, input_spec(PROGRAM.service))
        model = verify_package(path, expected)
        assert model.card.trained_ms == TEST_MS
        assert {"validation_auc", "validation_gauc", "train_loss"} <= set(model.card.metrics)
        assert current_version(path.parent.parent, kind) == path.name
        assert len(model.warmup) >= 1


def test_both_models_beat_popularity_on_the_day_they_never_saw(assessment: Assessment) -> None:
    clicks = assessment.tasks["click"]
    assert clicks.examples == REQUESTS_A_DAY * SHOWN
    for difference in clicks.differences:
        assert difference.baseline == "popularity"
        assert difference.auc.low > 0.05
    assert {d.model for d in clicks.differences} == {"fine", "two_tower"}
    assert set(assessment.tasks) == {"click", "long_view", "like"}
    assert assessment.live == 0.0  # nobody served these requests with the new model


def test_the_same_twice_and_another_for_another_seed(
    world_dir: Path, report: TrainReport, tmp_path: Path
) -> None:
    again = train(config(world_dir, tmp_path / "a", publish=False))
    assert again.packages.keys() == report.packages.keys()
    assert {k: p.name for k, p in again.packages.items()} == {
        k: p.name for k, p in report.packages.items()
    }
    assert (again.teacher, again.student) == (report.teacher, report.student)
    for kind in KINDS:
        assert current_version(tmp_path / "a", kind) is None  # publish=False
    other = train(config(world_dir, tmp_path / "b", seed=1))
    assert not set(weights(other).values()) & set(weights(report).values())


def test_what_happens_after_the_end_changes_nothing(report: TrainReport, tmp_path: Path) -> None:
    """The same log with the last day's clicks turned round, and with what users of earlier pages
    did since: the packages are the same bytes."""
    write_world(tmp_path / "log", clicked=lambda now_ms, click: click ^ (now_ms >= TEST_MS))
    log = join_log(LogPaths.under(tmp_path / "log"), JoinQuery("ranking", FINGERPRINT))
    ids = log.requests.column("request_id").to_pylist()
    later = [
        Act(UUID(ids[row["request_row"]]), row["item_id"], action, TEST_MS)
        for row in log.candidates.to_pylist()
        for action in (IMPRESSION, CLICK)
    ]
    write_actions(tmp_path / "log", later, first=1_000_000)
    again = train(config(tmp_path / "log", tmp_path / "packages"))
    assert weights(again) == weights(report)
    assert again.joined == report.joined


def test_live_is_what_the_model_scored_itself(tmp_path: Path) -> None:
    """A request names the fine package that was loaded, also where there was no time for it."""
    scored = replace(
        record(PROGRAM, [1, 2], 1), fine_version=7, task_scores=np.full((2, 3), 0.5, np.float32)
    )
    skipped = replace(record(PROGRAM, [3], 2), fine_version=7)
    other = replace(scored, request_lo=3, fine_version=8)
    write_records(tmp_path, PROGRAM, [scored, skipped, other])
    write_actions(tmp_path, [])
    log = join_log(LogPaths.under(tmp_path), JoinQuery("ranking", FINGERPRINT))
    dataset = dataset_of(log, PROGRAM)
    assert live_share(log, dataset, np.arange(5), 7) == pytest.approx(2 / 5)
    assert live_share(log, dataset, np.array([2]), 7) == 0.0


def test_a_log_without_requests_or_without_impressions(world_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"training\.log: needs ranked requests"):
        train(config(world_dir, tmp_path, end_ms=START_MS))
    with pytest.raises(RecordError, match="at least one exposed candidate in the training part"):
        train(config(world_dir, tmp_path, validation_ms=10 * DAY_MS))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_assess_refuses_what_it_cannot_measure(world_dir: Path, report: TrainReport) -> None:
    given = AssessConfig(world_dir, PLAN, "ranking", report.packages, END_MS)
    with pytest.raises(RecordError, match=r"assess\.log: needs exposed candidates at or after"):
        assess(given)
    swapped: dict[Kind, Path] = {"fine": report.packages["two_tower"]}
    with pytest.raises(PackageError, match="kind"):
        assess(replace(given, packages=swapped, split_ms=TEST_MS))


def test_one_model_alone_can_be_assessed(world_dir: Path, report: TrainReport) -> None:
    only: dict[Kind, Path] = {"two_tower": report.packages["two_tower"]}
    given = AssessConfig(world_dir, PLAN, "ranking", only, TEST_MS, replicates=20)
    clicks = assess(given).tasks["click"]
    assert set(clicks.models) == {"two_tower", "popularity"}
    assert np.isfinite(clicks.models["two_tower"].gauc.low)
