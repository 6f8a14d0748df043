"""Packages on the shelf: what is listed, what a prune takes and what never."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from predictor.card import CARD, CURRENT
from predictor.package import current_version, publish_package, write_package
from predictor.shelf import LEFT_MS, prune_packages, shelf
from schemas.errors import PackageError, SettingsError
from tests.predictor.support import NOW_MS, draft

LATER_MS = NOW_MS + 10 * LEFT_MS


@pytest.fixture
def fine(tmp_path: Path) -> list[Path]:
    """Five fine packages, the oldest first; the second is current."""
    drafts = [replace(draft("fine", seed), trained_ms=NOW_MS + seed) for seed in range(5)]
    written = [write_package(tmp_path, each) for each in drafts]
    publish_package(written[1])
    return written


def names(root: Path) -> set[str]:
    return {path.name for path in (root / "fine").iterdir()}


def test_the_shelf_is_listed_the_newest_first(tmp_path: Path, fine: list[Path]) -> None:
    tower = write_package(tmp_path, replace(draft("two_tower"), metrics={"validation_auc": 0.7}))
    (fine[3] / CARD).write_text("{}")
    found = shelf(tmp_path, LATER_MS)
    assert [(each.name, each.state) for each in found if each.kind == "fine"] == [
        (fine[4].name, "earlier"),
        (fine[2].name, "earlier"),
        (fine[1].name, "current"),
        (fine[0].name, "earlier"),
        (fine[3].name, "damaged"),
    ]
    (towers,) = [each for each in found if each.kind == "two_tower"]
    assert (towers.name, towers.state, towers.service) == (tower.name, "earlier", "ranking")
    assert towers.auc == 0.7
    assert towers.bytes == sum(file.stat().st_size for file in tower.iterdir())
    assert shelf(tmp_path / "none", LATER_MS) == []


def test_the_current_and_the_newest_stay(tmp_path: Path, fine: list[Path]) -> None:
    before = names(tmp_path)
    would = prune_packages(tmp_path, 2, LATER_MS, remove=False)
    assert names(tmp_path) == before
    assert prune_packages(tmp_path, 2, LATER_MS, remove=True) == would
    assert [each.name for each in would] == [fine[2].name, fine[0].name]
    assert names(tmp_path) == {CURRENT, *(fine[at].name for at in (1, 3, 4))}
    assert len(prune_packages(tmp_path, 0, LATER_MS, remove=True)) == 2
    assert names(tmp_path) == {CURRENT, fine[1].name}, "what the pointer names stays"
    assert prune_packages(tmp_path, 0, LATER_MS, remove=True) == []


def test_damage_goes_and_does_not_count(tmp_path: Path, fine: list[Path]) -> None:
    (fine[4] / CARD).unlink()
    (fine[1] / CARD).write_text("{}")
    gone = prune_packages(tmp_path, 2, LATER_MS, remove=True)
    assert {each.name for each in gone} == {fine[4].name, fine[0].name}
    assert fine[1].exists(), "the pointer names it: whoever repairs it finds it"


def test_what_a_dead_writer_left_goes_once_it_is_old(tmp_path: Path, fine: list[Path]) -> None:
    directory = tmp_path / "fine"
    for name in (".draft-old", ".draft-new", ".pruned-x"):
        (directory / name).mkdir()
    (directory / "notes").mkdir()
    os.utime(directory / ".draft-old", (0, 0))
    os.utime(directory / ".draft-new", (LATER_MS / 1_000, LATER_MS / 1_000))
    gone = prune_packages(tmp_path, 5, LATER_MS, remove=True)
    assert {each.name for each in gone} == {".draft-old", ".pruned-x"}
    assert {".draft-new", "notes"} < names(tmp_path)


def test_one_that_is_published_meanwhile_stays(
    tmp_path: Path, fine: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody goes back to the oldest just before it is removed."""
    rename = os.rename

    def publish_first(path: Path, aside: Path) -> None:
        if path == fine[0]:
            publish_package(fine[0])
        rename(path, aside)

    monkeypatch.setattr("predictor.shelf.os.rename", publish_first)
    gone = prune_packages(tmp_path, 4, LATER_MS, remove=True)
    assert gone == []
    assert current_version(tmp_path, "fine") == fine[0].name
    assert fine[0].is_dir()


def test_what_is_refused(tmp_path: Path, fine: list[Path]) -> None:
    with pytest.raises(SettingsError, match="--keep: needs 0 or more, got -1"):
        prune_packages(tmp_path, -1, LATER_MS, remove=True)
    (tmp_path / "fine" / CURRENT).write_text("elsewhere")
    with pytest.raises(PackageError, match="fine/CURRENT: needs 16 hex digits"):
        prune_packages(tmp_path, 0, LATER_MS, remove=True)
    assert all(path.exists() for path in fine)
