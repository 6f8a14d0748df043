"""A signal ends a command in order, at whatever moment it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.encore.terminal import hear_interrupts

BEGIN = """
import asyncio, os, signal, sys, time, types
from encore import __main__ as program, loops, signals

def run(command):
    sys.modules["encore.cli"] = types.SimpleNamespace(main=command)
    sys.exit(program.main())

def kill(*_):
    os.kill(os.getpid(), signal.{name})
"""

LOST = """
class Struck:
    def __del__(self):
        kill()
        for _ in range(1000):
            pass  # the signal's handler runs in here, where an exception goes nowhere

def checks():
    with signals.terminate_as_interrupt() as interruption:
        interruption.check()
        Struck()
        interruption.check()
    return 0

def never_checks():
    Struck()
    time.sleep(30)
    return 0

run({command})
"""

#: What the loop does with a signal, and what a second one or the alarm does then.
LOOP = """
signals.GRACE_S = {grace_s}

async def swallows():
    # Takes every cancellation for a reason to begin again.
    kill()
    while True:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            print("swallowed", flush=True)

async def blocks():
    asyncio.create_task(asyncio.sleep(30))
    kill()
    time.sleep(30)

async def leaves_a_thread():
    thread = asyncio.to_thread(time.sleep, 30)
    asyncio.get_running_loop().call_later(0.05, kill)
    await thread

async def fails():
    try:
        kill()
        await asyncio.sleep(30)
    finally:
        raise RuntimeError("while it unwound")

async def ends():
    kill()

async def ends_in_time():
    kill()
    await asyncio.sleep(30)

def loop():
    loops.run({work})
    return 0

def unwinds_long():
    try:
        loops.run(ends_in_time)
    finally:
        time.sleep(2 * signals.GRACE_S)
        print("unwound", flush=True)

run({command})
"""


def ended(program: str, **words: object) -> tuple[int, str, str, float]:
    """Exit code, stdout and stderr of a program that strikes itself; its seconds."""
    began = time.monotonic()
    given = {"name": "SIGINT", "grace_s": 20, "work": "ends", "command": "loop"} | words
    done = subprocess.run(
        [sys.executable, "-c", (BEGIN + program).format(**given)],
        capture_output=True,
        text=True,
        preexec_fn=hear_interrupts,
    )
    return done.returncode, done.stdout, done.stderr, time.monotonic() - began


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("command", ["checks", "never_checks"])
def test_one_inside_a_finaliser_is_not_lost(command: str, name: str) -> None:
    code, _, said, seconds = ended(LOST, command=command, name=name)
    assert (code, said) == (130, "stopped\n")
    assert seconds < 20


@pytest.mark.kill
def test_at_any_moment_of_a_loop_it_ends_without_a_traceback() -> None:
    """A hundred moments: in tasks, callbacks, finalisers, attempts to connect, between loops."""
    command = [sys.executable, "-m", "tests.encore.struck", "1", "100"]
    struck = subprocess.run(command, capture_output=True, text=True, preexec_fn=hear_interrupts)
    assert (struck.returncode, struck.stdout, struck.stderr) == (0, "", "")


@pytest.mark.parametrize("work", ["fails", "ends", "ends_in_time"])
def test_whatever_comes_of_the_loop_it_was_interrupted(work: str) -> None:
    assert ended(LOOP, work=work)[:3] == (130, "", "stopped\n")


@pytest.mark.parametrize("work", ["swallows", "blocks", "leaves_a_thread"])
def test_a_loop_that_does_not_end_is_ended_by_the_alarm(work: str) -> None:
    code, told, said, seconds = ended(LOOP, work=work, grace_s=0.3)
    assert (code, said) == (130, "stopped\n")
    assert set(told.split()) <= {"swallowed"}
    assert seconds < 20


def test_the_alarm_does_not_strike_what_unwinds_after_the_loop() -> None:
    assert ended(LOOP, command="unwinds_long", grace_s=0.3)[:3] == (130, "unwound\n", "stopped\n")


def test_a_second_one_does_not_wait_for_the_alarm() -> None:
    begin = (BEGIN + LOOP).format(name="SIGINT", grace_s=60, work="swallows", command="loop")
    child = subprocess.Popen(
        [sys.executable, "-c", begin],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    with child:
        assert child.stdout is not None and child.stdout.readline() == "swallowed\n"
        child.send_signal(signal.SIGTERM)
        # Where it did not strike that task, the runner cancels it, which is swallowed, too: a third
        # one ends that.
        if child.stdout.readline():
            child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=20)
    assert (child.returncode, said) == (130, "stopped\n")


def test_what_the_command_was_started_to_ignore_stays_ignored() -> None:
    """As below `nohup`, and in a shell's background."""

    def deaf() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    program = """
def command():
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
    loops.run(ends)
    return 0

async def ends():
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
    await asyncio.sleep(0)

run(command)
"""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.format(name="SIGINT") + program],
        capture_output=True,
        text=True,
        preexec_fn=deaf,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
