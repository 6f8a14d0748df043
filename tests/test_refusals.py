"""Refusals are of one family; that tests reach each of them is checked by tests/refusals.py."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from pathlib import Path

import pytest

from tests.refusals import ROOMS, ROOT, elsewhere, refusals

#: A caller's mistake inside this code base, which no user can make; and what ends a process.
CONTRACT = {"ValueError", "KeyError", "IndexError", "TypeError", "RuntimeError", "TimeoutError"}
ENDS = {"SystemExit", "KeyboardInterrupt", "typer.Exit"}


def test_every_place_that_is_exempt_is_there_and_says_why() -> None:
    told = elsewhere()
    assert all(told.values())
    assert set(told) <= {each.name for each in refusals()}


@pytest.mark.parametrize("room", ROOMS)
def test_no_other_error_is_raised_on_purpose(room: str) -> None:
    """Builtin exceptions only where this code base breaks its own contract."""
    other = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                if hasattr(builtins, name.partition(".")[0]) and name not in CONTRACT | ENDS:
                    other.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert other == []


def test_a_refusal_that_no_test_reaches_is_listed(tmp_path: Path) -> None:
    """One is made in a child process, one here, the others are listed."""
    test = tmp_path / "test_some.py"
    test.write_text(
        "import subprocess, sys\n"
        "import pytest\n"
        "from encore.lookup import parse_entities\n"
        "from schemas.errors import SettingsError\n"
        "code = 'import encore.stack_file as s, encore.settings as t; s.resolved(t.Settings())'\n"
        "def test_here() -> None:\n"
        "    with pytest.raises(SettingsError):\n"
        "        parse_entities(['x=y'])\n"
        "def test_child() -> None:\n"
        "    ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)\n"
        "    assert 'SettingsError' in ended.stderr\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--refusals=encore"]
    ended = subprocess.run(
        [*command, "-n", "0", "-p", "no:cacheprovider", "-c", "pyproject.toml", str(test)],
        cwd=ROOT,
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    listed = [line for line in ended.stdout.splitlines() if line.startswith("encore/")]
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not any(line.startswith("encore/stack_file.py") and "running" in line for line in listed)
    of_lookup = [line for line in listed if line.startswith("encore/lookup.py")]
    every = [each for each in refusals(["encore"]) if each.file == "encore/lookup.py"]
    assert len(of_lookup) == len(every) - 1


def clean_environment(home: Path) -> dict[str, str]:
    """Without what the outer pytest gave its children."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
