"""Checks a model package in a process of its own: `python -m predictor.verify PACKAGE NICENESS`.

Golden scores run the network on bytes nobody has vouched for yet, and torch holds the interpreter
lock while a module is built; neither belongs into a serving process. Reads what is expected as
JSON from standard input, prints one JSON object: `{"ok": true}`, or the parts of the error. Exits 0
when the package is good, 1 when it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

import torch
from pydantic import TypeAdapter

from predictor.card import Expected
from predictor.package import verify_package
from schemas.errors import PackageError
from store.cores import unpinned

_EXPECTED = TypeAdapter(Expected)
_NICENESS = 5


async def verify_in_process(
    path: Path, expected: Expected, timeout_s: float, polite: bool = True
) -> None:
    """Run the check as a child. Raises PackageError where it refuses, dies or takes too long.

    polite: at a low priority, so that it yields to what serves on the same cores.
    """
    with unpinned():
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "predictor.verify", str(path), str(_NICENESS if polite else 0)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": _python_path()},
        )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate(_EXPECTED.dump_json(expected))
    except TimeoutError:
        got = f"none after {timeout_s:g} s"
        raise PackageError(str(path), required="a check that ends", got=got) from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == 0:
        return
    try:
        parts = json.loads(out)
        error = PackageError(
            parts["where"], required=parts["required"], got=parts["got"], do=parts["do"]
        )
    except (ValueError, KeyError, TypeError):
        got = f"exit code {child.returncode}: {err.decode(errors='replace').strip()[-300:]}"
        error = PackageError(str(path), required="a check that ends", got=got)
    raise error


def _python_path() -> str:
    """The parent's, with the directory that holds this package in front."""
    mine = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, (mine, os.environ.get("PYTHONPATH"))))


def main() -> int:
    """The child: reads what is expected from standard input."""
    os.nice(int(sys.argv[2]))
    torch.set_num_threads(1)
    try:
        verify_package(Path(sys.argv[1]), _EXPECTED.validate_json(sys.stdin.buffer.read()))
    except PackageError as error:
        print(json.dumps(error.parts()))
        return 1
    print(json.dumps({"ok": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
