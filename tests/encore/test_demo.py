"""`encore demo`: interrupted at any moment it leaves no process; its verdict is what it found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from audit.join import JoinCounts
from audit.rebuild import Mismatch, RebuildReport
from encore.demo import DemoReport, demo_settings, split_timeline
from encore.kuairand import Page, Timeline
from encore.settings import Settings
from schemas.actions import ACTION
from tests.encore.terminal import hear_interrupts
from training.assess import Assessment
from training.evaluate import Evaluation, Interval, ModelQuality
from training.loop import Epoch, Fit
from training.run import TrainReport

ROOT = Path(__file__).parents[2]


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["== Start the stack", "   broker", "== Load batch", "== Replay all days"]
)
def test_interrupted_at_any_moment_it_leaves_no_process(moment: str, tmp_path: Path) -> None:
    """Ctrl-C, as a terminal sends it: to every process of the foreground group."""
    given = {key: value for key, value in os.environ.items() if not key.startswith("ENCORE_")}
    environment = given | {
        "ENCORE_DATA_DIR": str(tmp_path),
        "ENCORE_REPO": str(ROOT / "feature_repo"),
        "PYTHONUNBUFFERED": "1",
    }
    demo = subprocess.Popen(
        [sys.executable, "-m", "encore", "demo"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    stuck = threading.Timer(240, demo.kill)
    stuck.start()
    try:
        assert demo.stdout is not None
        seen = []
        for line in demo.stdout:
            seen.append(line)
            if line.startswith(moment):
                break
        time.sleep(0.7)
        family = psutil.Process(demo.pid).children(recursive=True)
        os.killpg(demo.pid, signal.SIGINT)
        rest, _ = demo.communicate(timeout=120)
    finally:
        stuck.cancel()
        demo.kill()
    output = "".join(seen) + rest
    assert demo.returncode == 130, output
    assert "stopped" in rest
    assert "Traceback" not in output
    assert not [process for process in family if process.is_running()]


def test_its_directory_and_ports_are_its_own(tmp_path: Path) -> None:
    settings = demo_settings(Settings(data_dir=tmp_path, http_port=8080, store_port=7000))
    assert settings.data_dir == tmp_path / "demo"
    assert (settings.http_port, settings.store_port, settings.broker_port) == (0, 0, 0)
    assert settings.allow_now_ms
    assert settings.spool.is_relative_to(tmp_path / "demo")


def test_the_timeline_is_cut_at_the_last_day_and_before_the_last_moment() -> None:
    actions = np.zeros(6, ACTION)
    actions["time_ms"] = [10, 20, 30, 40, 50, 50]
    pages = [Page(1, n, 1, at, np.array([1])) for n, at in enumerate((10, 30, 40))]
    parts = split_timeline(Timeline(actions, pages, 6, 0, 3), 30)
    assert [part.actions["time_ms"].tolist() for part in parts] == [[10, 20], [30, 40], [50, 50]]
    assert [[page.time_ms for page in part.pages] for part in parts] == [[10], [30, 40], []]


def report(fine: float, two_tower: float, popularity: float, wrong: int) -> DemoReport:
    half = Interval(0.5, 0.5, 0.5)

    def quality(auc: float) -> ModelQuality:
        return ModelQuality(Interval(auc, auc, auc), half, half)

    models = {"fine": fine, "two_tower": two_tower, "popularity": popularity}
    counts = JoinCounts(1, 0, 1, 1, 0)
    fit = Fit((Epoch(0.5, 0.5, 0.5),), 0)
    evaluation = Evaluation(1, 1, 1, 1, 1, {n: quality(auc) for n, auc in models.items()}, ())
    mismatches = tuple(Mismatch(str(n), "score", 1, 1.0) for n in range(wrong))
    return DemoReport(
        1.0,
        TrainReport(counts, 1, 1, 1, fit, fit, {}),
        Assessment(counts, {"click": evaluation}, 1.0),
        RebuildReport(1, 1, mismatches),
    )


def test_both_models_must_beat_popularity_and_the_log_must_agree() -> None:
    assert report(0.66, 0.65, 0.62, 0).failures == []
    assert report(0.66, 0.62, 0.62, 0).failures == [
        "two_tower: AUC 0.6200 is not above popularity's 0.6200"
    ]
    assert report(float("nan"), 0.65, 0.62, 0).failures[0].startswith("fine: AUC nan")
    assert report(0.66, 0.65, 0.62, 2).failures == ["2 parts rebuilt from the log differ"]
