"""What a benchmark hands back, and how it is printed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """quick: end within 45 s on two cores. say: prints a line while the benchmark runs.

    kills: how many events strike, None leaves it to the benchmark. seed: of what is drawn.
    """

    quick: bool
    say: Say
    kills: int | None = None
    seed: int = 1


@dataclass(slots=True)
class Report:
    """Lines for people, and the one JSON object for machines.

    wrong: what checks of its own found otherwise than it must be; figures of such a run are printed
    all the same, and its exit code is 1.
    """

    lines: list[str] = field(default_factory=list)
    line: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def check(self, holds: bool, otherwise: str) -> None:
        """Notes what is wrong, in a sentence, where something that must hold does not."""
        if not holds:
            self.wrong.append(otherwise)

    def note(self, text: str) -> None:
        """Adds a sentence."""
        self.lines.append(text)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Adds a table: first column left, the others right-aligned."""
        self.lines.extend(["", title, *table(head, rows)])


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A name, a sentence, and the module that runs it: loaded only then, since peers are slow."""

    name: str
    summary: str
    module: str


def show(cell: Cell) -> str:
    """A cell as text: three significant digits, "-" for what was not measured.

    >>> show(1234.5), show(0.01234), show(None), show(7), show(math.inf)
    ('1,234', '0.0123', '-', '7', 'inf')
    """
    if cell is None:
        return "-"
    if isinstance(cell, float) and not math.isfinite(cell):
        return str(cell)
    if isinstance(cell, float):
        digits = 0 if cell == 0 else max(0, 2 - math.floor(math.log10(abs(cell))))
        return f"{cell:,.{digits}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """The lines of a plain-text table."""
    cells = [list(head), *([show(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    lines = [
        "  ".join(
            text.ljust(width) if at == 0 else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def as_json(line: dict[str, Any]) -> str:
    """The last line: numbers cut to four significant digits, NaN and infinity as null."""
    return json.dumps(_rounded(line))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
