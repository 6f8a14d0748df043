"""How commands find a running stack, and what they make of one that is gone."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from encore.settings import Settings
from encore.stack_file import announce, owned, resolved, running_stack
from schemas.errors import LocalError, SettingsError


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def test_found_while_it_runs_and_not_after(settings: Settings) -> None:
    assert running_stack(settings.runs) is None
    with owned(settings.runs):
        announce(settings.runs, bootstrap="127.0.0.1:1", store_url="redis://127.0.0.1:2/0")
        found = resolved(settings)
        assert (found.bootstrap, found.store_url) == ("127.0.0.1:1", "redis://127.0.0.1:2/0")
    assert running_stack(settings.runs) is None


def test_nothing_runs(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="start `encore up`, or set bootstrap"):
        resolved(settings)


def test_a_broker_that_nobody_asks_for_need_not_be_there(settings: Settings) -> None:
    given = settings.model_copy(update={"store_url": "redis://store/0"})
    assert resolved(given, ["store_url"]) == given
    with pytest.raises(SettingsError, match="start `encore up`, or set store_url"):
        resolved(settings, ["store_url"])


def test_what_is_set_needs_no_stack(settings: Settings) -> None:
    given = settings.model_copy(update={"bootstrap": "kafka:9092", "store_url": "redis://store/0"})
    assert resolved(given) == given


@pytest.mark.parametrize("change", [{"pid": 2**22 - 1}, {"started_s": 1.0}])
def test_what_a_killed_stack_left_is_ignored(settings: Settings, change: dict[str, float]) -> None:
    settings.runs.mkdir(parents=True)
    announce(settings.runs, bootstrap="127.0.0.1:1", store_url="redis://127.0.0.1:2/0")
    file = settings.runs / "stack.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert running_stack(settings.runs) is None


def test_a_clock_that_is_set_changes_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system then tells another time of its start, and processes another one of theirs."""
    before_s = psutil.boot_time()
    with owned(settings.runs):
        announce(settings.runs, bootstrap="127.0.0.1:1", store_url="redis://127.0.0.1:2/0")
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: before_s + 3_600.0)
        assert psutil.boot_time() == before_s + 3_600.0
        assert running_stack(settings.runs) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"bootstrap": 1}', '{"other": 1}'])
def test_a_broken_file_is_ignored(settings: Settings, text: str) -> None:
    settings.runs.mkdir(parents=True)
    (settings.runs / "stack.json").write_text(text)
    assert running_stack(settings.runs) is None


def test_one_stack_a_directory(settings: Settings) -> None:
    with (
        owned(settings.runs),
        pytest.raises(LocalError, match="where a stack is running"),
        owned(settings.runs),
    ):
        pass
    with owned(settings.runs):
        pass
