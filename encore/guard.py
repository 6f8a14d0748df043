"""Exec shim: become a program that the kernel kills when its parent dies.

    python -I -S guard.py PARENT_PID PROGRAM [ARGUMENT...]

`PR_SET_PDEATHSIG` survives `execve`, so after a few milliseconds nothing of this shim is left:
the process is the program, with one property more. A parent killed by SIGKILL cannot clean up after
itself; this is how it still leaves nothing behind. Other systems than Linux have no such call;
there children are stopped by their parent only.

The shim imports nothing of encore and runs isolated (-I, -S), so it starts in about 15 ms.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_EXIT_ORPHAN = 75  # the parent was gone before the kernel was told to watch it
_EXIT_PRCTL = 71
_EXIT_EXEC = 127


def main(arguments: list[str]) -> int:
    """Replace this process by `arguments[1:]`; returns an exit code only when that failed."""
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            print(f"prctl: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
            return _EXIT_PRCTL
    if os.getppid() != parent:
        return _EXIT_ORPHAN
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"{program[0]}: {error.strerror}", file=sys.stderr)
        return _EXIT_EXEC


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
