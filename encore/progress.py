"""Progress bars on stderr, for what may take longer than two seconds.

Rooms do not know of bars: they call back with what is done. On a terminal a bar is drawn; elsewhere
one line is written when a stage is complete.
"""

from __future__ import annotations

import sys
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class Bars:
    """One bar a stage. Use as a context manager."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr, highlight=False)
        self._drawn = console.is_terminal
        self._console = console
        self._stages: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not self._drawn,
        )

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` of a stage, with a few words; a stage is new when first named."""
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(stage, total=total, note=note)
        task = self._progress.tasks[self._stages[stage]]
        was_complete = task.completed >= (task.total or 0) > 0
        self._progress.update(self._stages[stage], completed=done, total=total, note=note)
        if done >= total and not was_complete and not self._drawn:
            self._console.print(f"{stage:<12} {done:,} {note}".rstrip(), markup=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
