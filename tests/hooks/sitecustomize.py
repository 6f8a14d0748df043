"""Notes where EncoreErrors are made, in every Python that the tests start (see tests/refusals.py).

The directory that the variable names gets one file a process, one line `file:line` for each line of
the project that was on the stack when an EncoreError was made. Written at once: a killed process
has told what it did.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final

VARIABLE: Final = "REFUSAL_LINES"
MODULE: Final = "schemas.errors"
ROOT: Final = str(Path(__file__).parents[2]) + os.sep


def watch(errors: ModuleType, directory: Path) -> None:
    """From now on; a second call changes nothing."""
    original: Any = errors.EncoreError.__init__
    if original.__name__ == "noting":
        return
    known: set[str] = set()

    def noting(error: Any, *arguments: Any, **words: Any) -> None:
        new = set(_lines(sys._getframe(1))) - known
        if new:
            known.update(new)
            with (directory / str(os.getpid())).open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in sorted(new)))
        original(error, *arguments, **words)

    errors.EncoreError.__init__ = noting


def _lines(frame: FrameType | None) -> list[str]:
    lines = []
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT):
            lines.append(f"{name[len(ROOT) :]}:{frame.f_lineno}")
        frame = frame.f_back
    return lines


class _OnImport(MetaPathFinder):
    """Finds the module as others do, and watches it once it is there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader, run = spec.loader, spec.loader.exec_module

        def run_and_watch(module: ModuleType) -> None:
            run(module)
            watch(module, self._directory)

        loader.exec_module = run_and_watch  # type: ignore[method-assign]
        return spec


if VARIABLE in os.environ and __name__ == "sitecustomize":
    sys.meta_path.insert(0, _OnImport(Path(os.environ[VARIABLE])))
