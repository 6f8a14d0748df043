"""The command line's surface: help, exit codes, errors as text and as JSON.

`python -m tests.encore.test_cli` writes the golden help again, after a look at the difference.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import typer.main

from encore.cli import app, main
from predictor.package import write_package
from tests.predictor.support import draft

GOLDEN = Path(__file__).parents[1] / "golden" / "cli_help.txt"
ROOT_COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
COMMANDS = sorted(ROOT_COMMANDS)
COLUMNS = "100"


def help_of(*command: str) -> str:
    """What `encore COMMAND --help` prints on a wide terminal."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with redirect_stdout(io.StringIO()) as printed:
            assert main([*command, "--help"]) == 0
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return printed.getvalue()


def pages_of(words: tuple[str, ...], command: object) -> Iterator[tuple[str, str]]:
    """The command's page, then those below it."""
    yield " ".join(("encore", *words)), help_of(*words)
    for name, below in getattr(command, "commands", {}).items():
        yield from pages_of((*words, name), below)


def test_a_list_of_commands_cuts_no_line_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of 80 columns."""
    monkeypatch.setitem(globals(), "COLUMNS", "80")
    groups = [[name] for name in COMMANDS if hasattr(ROOT_COMMANDS[name], "commands")]
    for words in ([], *groups, ["stream", "dead"]):
        listed = help_of(*words).partition("Commands:")[2].partition("\n\n")[0]
        assert listed.strip()
        assert "..." not in listed


def all_help() -> str:
    pages = [("encore", help_of())]
    for command in COMMANDS:
        pages += pages_of((command,), ROOT_COMMANDS[command])
    return "\n".join(f"$ {name} --help\n{text}" for name, text in pages)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory without ENCORE_* variables."""
    for name in list(os.environ):
        if name.startswith("ENCORE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_help_is_as_written() -> None:
    wanted = GOLDEN.read_text("utf-8")
    assert all_help() == wanted, "look at it, then: python -m tests.encore.test_cli"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_something_in_one_line(command: str) -> None:
    line = next(line for line in help_of().splitlines() if line.split()[:1] == [command])
    assert not line.endswith("..."), "the first line of its help is too long for the list"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("encore 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sing"],
        ["features"],
        ["--no-such-option"],
        ["doctor", "extra"],
        ["features", "--now-ms", "x"],
        ["apply", "--take-over", "--no-publish"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Error" in capsys.readouterr().err


def test_an_error_is_one_line_and_1(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "user_id=1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("encore: store_url: needs a running local stack, or an address")


def test_an_error_as_json(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "user_id=one", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    error = json.loads(printed.err)["error"]
    assert set(error) == {"code", "where", "required", "got", "do"}
    assert (error["code"], error["got"]) == ("settings", "'user_id=one'")


def test_a_bad_setting_is_refused_by_every_command(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere / "encore.toml").write_text("bootstrp = 1\n")
    for command in sorted({*COMMANDS} - {"init"}):  # what makes the settings reads none
        words = {
            "features": "user_id=1",
            "replay": "encore.toml",
            "generations": "list",
            "models": "list",
            "topics": "show",
        }
        arguments = [words[command]] if command in words else []
        code = main([command, *arguments])
        assert code == 1, command
        assert "did you mean bootstrap?" in capsys.readouterr().err, command


def test_models_are_listed_and_pruned(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out == "none; `encore train` makes them\n"
    old, new = (
        write_package(nowhere / ".encore/packages", replace(draft("fine", seed), trained_ms=at_ms))
        for seed, at_ms in ((0, 1_000), (1, 2_000))
    )
    assert main(["models", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1:5] for line in lines[1:]] == [
        [new.name, "earlier", "1970-01-01", "00:00:02"],
        [old.name, "earlier", "1970-01-01", "00:00:01"],
    ]
    assert main(["models", "prune", "--keep", "1"]) == 0
    printed = capsys.readouterr()
    assert (old.name in printed.out, new.name in printed.out) == (True, False)
    assert "nothing was removed" in printed.err
    assert main(["models", "prune", "--keep", "1", "--yes", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == [old.name]
    assert (old.exists(), new.exists()) == (False, True)
    assert main(["models", "prune", "--keep", "1"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_config_option(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "absent.toml", "doctor"]) == 1
    assert "absent.toml, which is no file" in capsys.readouterr().err


def test_doctor_as_json(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "encore.toml").write_text("http_port = 0\n")
    assert main(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert {"name", "state", "found", "do"} == set(checks[0])
    assert {"python", "packages", "disk", "broker", "store"} <= {check["name"] for check in checks}


def test_doctor_fails_with_1(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "encore.toml").write_text('http_port = 0\nbootstrap = "127.0.0.1:9"\n')
    assert main(["doctor"]) == 1
    assert "nothing answers at 127.0.0.1:9" in capsys.readouterr().out


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, encore.cli\n"
        "heavy = {'torch', 'feast', 'faust', 'kafka', 'pyarrow', 'numpy', 'pydantic', 'rich'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


if __name__ == "__main__":
    GOLDEN.write_text(all_help(), "utf-8")
