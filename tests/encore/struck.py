"""A program that does a bit of everything, struck by a signal at many moments.

    python -m tests.encore.struck SEED TRIALS

Each trial is a fork that runs `encore.__main__.main` with work that never ends by itself. Prints
what of them did not end as it should, a line each.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import encore.__main__ as program
from encore import loops

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Until which moment of a trial it is struck, s.
WITHIN_S = 0.04
#: Work that goes on for so long has lost its signal, s.
LOST_S = 20.0


class Finalised:
    """Where a signal strikes its finaliser, Python drops the exception."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        spin(0.0004)


def spin(seconds: float) -> None:
    """Python code, in which a handler runs at any moment."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def connect(port: int) -> None:
    """Attempts race each other in tasks of their own, their exceptions taken by nobody else."""
    while True:
        attempt = asyncio.open_connection("localhost", port, happy_eyeballs_delay=0.0005)
        _, writer = await attempt
        writer.close()


async def counted() -> AsyncIterator[int]:
    try:
        for number in range(1_000_000):
            spin(0.0002)
            yield number
            await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)


async def count() -> None:
    async for _ in counted():
        Finalised()


async def work_in_threads() -> None:
    while True:
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.002) for _ in range(3)))


async def nest() -> None:
    while True:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(asyncio.sleep(0.0005))
            spin(0.0003)


def call_again(loop: asyncio.AbstractEventLoop) -> None:
    spin(0.0003)
    loop.call_later(0.0005, call_again, loop)


async def everything() -> None:
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "localhost")
    call_again(loop)
    background = asyncio.create_task(nest())
    async with server, asyncio.timeout(LOST_S), asyncio.TaskGroup() as group:
        port = server.sockets[0].getsockname()[1]
        for each in (connect(port), connect(port), count(), work_in_threads(), nest()):
            group.create_task(each)
    await background


async def briefly() -> None:
    await asyncio.gather(*(asyncio.to_thread(spin, 0.0005) for _ in range(2)))


def command(arguments: list[str] | None = None) -> int:
    """One loop after the other, with plain code between them; then one that stays."""
    for _ in range(3):
        Finalised()
        exec("spin(0.0005)", globals())  # as a dataclass makes its methods
        loops.run(briefly)
    loops.run(everything)
    return 0


def strike(dice: random.Random) -> str:
    """One trial; what was wrong with it."""
    number, delay_s = dice.choice(SIGNALS), dice.uniform(0, WITHIN_S)
    with tempfile.TemporaryFile() as said:
        sys.stdout.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a fork begins with forgetting them
        pid = os.fork()
        if pid == 0:
            os.dup2(said.fileno(), 2)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            sys.exit(program.main())  # with all that an interpreter does at its end
        time.sleep(delay_s)
        os.kill(pid, number)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        text = said.read().decode()
    if (code, text) == (program.INTERRUPTED, "stopped\n"):
        return ""
    return f"{number.name} after {delay_s * 1000:.1f} ms: exit code {code}\n{text}"


def main(seed: str, trials: str) -> None:
    sys.modules["encore.cli"] = SimpleNamespace(main=command)  # type: ignore[assignment]
    for number in SIGNALS:  # a fork is struck before its first step, too
        signal.signal(number, program._leave)
    dice = random.Random(int(seed))
    for _ in range(int(trials)):
        if wrong := strike(dice):
            print(wrong)


if __name__ == "__main__":
    main(*sys.argv[1:])
