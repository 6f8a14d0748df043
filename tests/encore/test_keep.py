"""One serving process that is kept running: when it is started again, and after how long."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from encore.keep import FIRST_PAUSE_S, LONGEST_PAUSE_S, SILENCE_S, STEADY_S, Kept, KeptSpec
from schemas.errors import LocalError


def runs(kept: Kept) -> bool:
    return kept.child is not None


def pause_after(kept: Kept, now_s: float, lasted_s: float) -> float:
    """Let it run and end by itself; how long it pauses then."""
    kept.look(now_s)
    assert kept.child is not None
    assert kept.child.wait(60) == 0
    kept.look(now_s + lasted_s)
    assert not runs(kept)
    pause_s = kept._start_at_s - (now_s + lasted_s)
    kept.look(now_s + lasted_s + pause_s / 2)
    assert not runs(kept), "its pause is not over"
    return pause_s


def test_one_that_ends_is_started_again_after_longer_and_longer() -> None:
    kept = Kept(KeptSpec("short", ["--version"], {}))
    assert pause_after(kept, 0.0, 0.0) == FIRST_PAUSE_S
    assert pause_after(kept, 10.0, 0.0) == pytest.approx(2 * FIRST_PAUSE_S)
    assert pause_after(kept, 20.0, STEADY_S) == pytest.approx(FIRST_PAUSE_S)
    assert kept.restarts == 3
    kept._pause_s = LONGEST_PAUSE_S
    assert pause_after(kept, 100.0, 0.0) == kept._pause_s == LONGEST_PAUSE_S


def test_one_that_says_nothing_any_more_is_killed(tmp_path: Path) -> None:
    kept = Kept(KeptSpec("hung", ["doctor"], {}, tmp_path / "0.sock"))
    kept.look(0.0)
    assert kept.child is not None
    os.kill(kept.child.pid, signal.SIGSTOP)
    kept._answered = True
    kept.look(100 * SILENCE_S)  # it is who asks that stood still
    silent_s = 0
    while runs(kept):
        silent_s += 1
        kept.look(100 * SILENCE_S + silent_s)
    assert SILENCE_S - 3 < silent_s <= SILENCE_S + 1
    assert (kept.restarts, kept.ready) == (1, False)


def test_one_whose_places_are_tidied_away_or_have_no_room_is_started_again(tmp_path: Path) -> None:
    """Directories for temporary files are emptied by the system now and then, and full at times."""
    place = tmp_path / "encore"
    kept = Kept(KeptSpec("short", ["--version"], {}, pulse=place / "short.pulse"))
    pause_after(kept, 0.0, 0.0)
    (place / "short.pulse").unlink()
    place.rmdir()
    place.write_text("in the way")
    kept.look(1.0)
    assert not runs(kept)
    place.unlink()
    kept.look(1.0 + 2 * FIRST_PAUSE_S)
    assert runs(kept)
    assert (place / "short.pulse").exists()
    kept.end(60)


def test_one_that_cannot_be_started_again_is_tried_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine without room for a process right now; at the very first start it is an error."""
    kept = Kept(KeptSpec("short", ["--version"], {}))
    pause_after(kept, 0.0, 0.0)
    monkeypatch.setattr("encore.children.sys.executable", str(tmp_path / "missing"))
    kept.look(1.0)
    assert not runs(kept)
    with pytest.raises(LocalError, match=r"local\.new: needs a program that can be run"):
        Kept(KeptSpec("new", [], {})).look(0.0)
    monkeypatch.undo()
    kept.look(1.0 + FIRST_PAUSE_S)
    assert not runs(kept), "its pause has doubled"
    kept.look(1.0 + 2 * FIRST_PAUSE_S)
    assert runs(kept)
    kept.end(60)
