"""Where settings come from, which one wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from encore.settings import PATH_SETTINGS, Settings, load_settings, variable
from schemas.errors import SettingsError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in an empty directory with no ENCORE_* variables."""
    import os

    for name in list(os.environ):
        if name.startswith("ENCORE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_are_loopback() -> None:
    settings = load_settings()
    assert settings.http_host == "127.0.0.1"
    assert settings.bootstrap == settings.store_url == "local"
    assert settings.spool == settings.data_dir / "spool"
    assert settings.packages == settings.data_dir / "packages"


def test_file_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("encore.toml").write_text('group = "file"\npartitions = 8\n')
    monkeypatch.setenv("ENCORE_GROUP", "environment")
    settings = load_settings()
    assert (settings.group, settings.partitions) == ("environment", 8)


def test_named_file_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.toml").write_text('group = "a"\n')
    (tmp_path / "b.toml").write_text('group = "b"\n')
    monkeypatch.setenv("ENCORE_CONFIG", str(tmp_path / "a.toml"))
    assert load_settings().group == "a"
    assert load_settings(tmp_path / "b.toml").group == "b"


def test_paths_of_the_file_are_relative_to_it(tmp_path: Path) -> None:
    config = tmp_path / "conf" / "my.toml"
    config.parent.mkdir()
    config.write_text('data_dir = "data"\nspool_dir = "/spool"\n')
    settings = load_settings(config)
    assert settings.data_dir == tmp_path / "conf" / "data"
    assert settings.spool == Path("/spool")


def test_path_settings_are_all_paths() -> None:
    paths = [n for n, f in Settings.model_fields.items() if "Path" in str(f.annotation)]
    assert sorted(paths) == sorted(PATH_SETTINGS)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_children_get_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(group="g", allow_now_ms=True, data_dir=Path("somewhere"), http_port=0)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    again = load_settings()
    assert again.data_dir == Path("somewhere").absolute()
    absolute = {
        name: Path(value).absolute() for name, value in settings if name in ("data_dir", "repo")
    }
    assert again == settings.model_copy(update=absolute)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("bootsrap = 1", ["encore.toml: bootsrap", "did you mean bootstrap?"]),
        ("[store]\nurl = 1", ["encore.toml: store", "did you mean store_"]),
        ("zzzzzz = 1", ["known are bootstrap, store_url"]),
        (
            "http_port = 70000",
            ["encore.toml: http_port", "got 70000", "less than or equal to 65535"],
        ),
        ('partitions = "many"', ["encore.toml: partitions", "got 'many'", "valid integer"]),
        ("partitions = 0", ["greater than or equal to 1"]),
        ('spool_full = "explode"', ["'drop' or 'refuse'"]),
        ('store_url = "mysql://u:secret@h"', ["encore.toml: store_url", "u:***@h"]),
        ("group = ", ["encore.toml", "a TOML file", "Invalid value"]),
    ],
)
def test_bad_file(text: str, parts: list[str]) -> None:
    Path("encore.toml").write_text(text)
    with pytest.raises(SettingsError) as error:
        load_settings()
    for part in parts:
        assert part in str(error.value)
    assert "secret" not in str(error.value)


def test_file_that_is_not_text() -> None:
    Path("encore.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="a TOML file"):
        load_settings()


def test_missing_file() -> None:
    with pytest.raises(SettingsError, match="no file"):
        load_settings(Path("absent.toml"))


def test_unknown_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCORE_STORE_ULR", "x")
    with pytest.raises(SettingsError, match=r"ENCORE_STORE_ULR.*did you mean ENCORE_STORE_URL\?"):
        load_settings()


def test_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("encore.toml").write_text("http_port = 80\n")
    monkeypatch.setenv(variable("http_port"), "eighty")
    with pytest.raises(SettingsError, match=r"environment: ENCORE_HTTP_PORT: .*got 'eighty'"):
        load_settings()
