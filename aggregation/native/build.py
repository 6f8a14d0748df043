"""Builds the kernels: `python -m aggregation.native.build`, and what an installation calls.

Nothing but a C11 compiler is needed: no headers of Python or numpy.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
BUILT: Final = HERE / "kernels.so"

FLAGS: Final = ("-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
#: Values are equal to numpy's to the last bit, so products and sums are rounded one by one; scores
#: have a tolerance.
FUSED: Final = frozenset({"networks.c"})


def sources() -> list[Path]:
    """The C files and their headers, sorted."""
    return sorted(path for path in HERE.iterdir() if path.suffix in (".c", ".h"))


def sources_digest() -> str:
    """16 hex digits over the C sources: what a library says of itself, too."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def build(target: Path = BUILT, extra: Sequence[str] = ()) -> None:
    """Compile all sources into `target`, which is replaced as a whole, since a process may have it
    mapped. extra: flags behind the usual ones. Raises OSError where there is no compiler and
    subprocess.CalledProcessError, whose `stderr` says why, where it fails."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    files = [path for path in sources() if path.suffix == ".c"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build") as directory:
        made, parts = Path(directory) / target.name, []
        command = [*shlex.split(compiler), *FLAGS, f'-DKERNEL_SOURCES="{sources_digest()}"', *extra]
        for file in files:
            parts.append(f"{directory}/{file.stem}.o")
            fused = "fast" if file.name in FUSED else "off"
            _run([*command, f"-ffp-contract={fused}", "-c", str(file), "-o", parts[-1]])
        _run([*command, "-shared", *parts, "-o", str(made), "-lm"])
        made.replace(target)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def main() -> int:
    """Build in place. Returns the exit code."""
    try:
        build()
    except OSError as error:
        print(f"kernels: no C compiler: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"kernels: {error.stderr}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
