"""Every refusal is reached by a test: the places that make an EncoreError, and whether one did.

A *refusal* is a call in the product's rooms with the keywords `required` and `got`: an EncoreError,
or a helper that makes one. While tests run, each EncoreError that is made notes the lines of the
rooms on its stack, here and in every process that the tests start (`tests/hooks`). When the whole
suite has passed (pytest without a selection), a refusal that no test reached fails it, unless
`tests/refusals_elsewhere.txt` says why none can.

`pytest tests/schemas --refusals=schemas` lists, after any selection of tests, the refusals of the
named rooms that it did not reach.
"""

from __future__ import annotations

import ast
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from schemas import errors
from tests.hooks.sitecustomize import VARIABLE, watch

ROOT: Final = Path(__file__).parents[1]
ROOMS: Final = (
    *("schemas", "store", "aggregation", "catalog", "streams", "predictor"),
    *("audit", "training", "encore"),
)
ELSEWHERE: Final = Path(__file__).with_name("refusals_elsewhere.txt")
KEYWORDS: Final = {"required", "got"}


@dataclass(frozen=True, order=True)
class Refusal:
    """One place. text: its first argument and what it requires, as written."""

    file: str
    first: int
    last: int
    text: str

    @property
    def name(self) -> str:
        """Without line numbers, so that it stays when lines move."""
        return f"{self.file}: {self.text}"

    @property
    def lines(self) -> set[str]:
        """Its lines, as they are noted."""
        return {f"{self.file}:{line}" for line in range(self.first, self.last + 1)}


def refusals(rooms: Iterable[str] = ROOMS, root: Path = ROOT) -> list[Refusal]:
    """All of them, in the order of files and lines."""
    files = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
    return [each for path in files for each in sorted(_refusals_of(path, root))]


def _refusals_of(path: Path, root: Path) -> Iterator[Refusal]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).startswith("super()"):
            continue
        words = {each.arg: each.value for each in node.keywords}
        if words.keys() >= KEYWORDS:
            where = ast.unparse(node.args[0]) if node.args else ""
            text = f"{ast.unparse(node.func)}({where}, required={ast.unparse(words['required'])})"
            file, last = str(path.relative_to(root)), node.end_lineno or node.lineno
            yield Refusal(file, node.lineno, last, text)


def elsewhere() -> dict[str, str]:
    """Refusal's name → why no test reaches it: `# reason`, then a name a line."""
    told: dict[str, str] = {}
    reason = ""
    for line in ELSEWHERE.read_text("utf-8").splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line:
            told[line] = reason
    return told


class Plugin:
    """Of the process that the user started; pytest-xdist's workers only note lines."""

    def __init__(self, rooms: tuple[str, ...] | None, directory: Path) -> None:
        """rooms: of which to list what was not reached; None lists nothing but after all tests."""
        self._rooms, self._directory = rooms, directory
        self._found: list[Refusal] = []
        self._missing: list[Refusal] = []

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        config = session.config
        options = config.option
        whole = (
            config.args_source is pytest.Config.ArgsSource.TESTPATHS
            and not (options.keyword or options.markexpr or options.collectonly)
            and session.exitstatus == pytest.ExitCode.OK
        )
        if not (whole or self._rooms):
            return
        reached = self._reached()
        told = elsewhere()
        self._found = refusals(self._rooms or ROOMS)
        self._missing = [
            each for each in self._found if not each.lines & reached and each.name not in told
        ]
        if whole and self._missing:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._missing:
            terminalreporter.section("refusals that no test reached")
        for each in self._missing:
            terminalreporter.write_line(f"{each.file}:{each.first}: {each.text}")
        if self._found:
            words = f"refusals: {len(self._found)}, {len(self._missing)} not reached"
            terminalreporter.write_line(words)

    def pytest_unconfigure(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def _reached(self) -> set[str]:
        files = self._directory.iterdir()
        return {line for file in files for line in file.read_text("utf-8").splitlines()}


def add_option(parser: pytest.Parser) -> None:
    """`--refusals=ROOM,…`: list what the selected tests did not reach there."""
    parser.addoption("--refusals", metavar="ROOMS", help="list unreached refusals of these rooms")


def register(config: pytest.Config) -> None:
    """Watch this process, and those that it starts."""
    if VARIABLE not in os.environ:
        directory = Path(tempfile.mkdtemp(prefix="refusals-"))
        os.environ[VARIABLE] = str(directory)
        inherited = os.environ.get("PYTHONPATH")
        hooks = [str(ROOT / "tests" / "hooks"), *([inherited] if inherited else [])]
        os.environ["PYTHONPATH"] = os.pathsep.join(hooks)
        rooms = config.getoption("--refusals")
        config.pluginmanager.register(Plugin(tuple(rooms.split(",")) if rooms else None, directory))
    watch(errors, Path(os.environ[VARIABLE]))
