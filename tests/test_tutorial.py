"""docs/tutorial.md, command by command: each runs, and prints what the page shows.

A ```console block holds commands after `$ ` and what they print on stdout. `…` matches any text
within a line, a line of `…` alone any number of lines, runs of spaces match each other. A ```diff
block is an edit: its file after `--- `, then lines to keep (space), remove (-) and add (+). A
command that only looks is repeated until it prints what is shown: workers take a moment.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from encore.local import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("stack")]

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "tutorial.md"
PORT: Final = "8080"
GRPC_PORT: Final = "8090"
LOOKS: Final = ("encore features", "encore stream", "curl ")
PATIENCE_S: Final = 180.0
COMMAND_S: Final = 300.0


@dataclass(frozen=True)
class Command:
    """One command and the lines shown under it."""

    line: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Edit:
    """old and new: the text of a file before and after."""

    file: str
    old: str
    new: str


def steps(page: str) -> list[Command | Edit]:
    """What a reader does, in order."""
    found: list[Command | Edit] = []
    for kind, text in re.findall(r"^```(console|diff)\n(.*?)^```$", page, re.M | re.S):
        if kind == "diff":
            found.append(edit(text))
            continue
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            line, *shown = part.splitlines()
            found.append(Command(line, tuple(shown)))
    return found


def edit(text: str) -> Edit:
    head, *lines = text.splitlines()
    assert head.startswith("--- ")
    old = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
    new = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
    return Edit(head[4:], old, new)


def matches(shown: tuple[str, ...], printed: str) -> bool:
    """Whether the page shows what was printed."""
    pattern = ""
    for line in shown:
        if line == "…":
            pattern += r"(?:.*\n)*?"
            continue
        words = [re.escape(word).replace("…", ".*") for word in line.split()]
        pattern += r"[ ]*" + r"[ ]+".join(words) + r"[ ]*\n"
    text = printed if printed.endswith("\n") or not printed else printed + "\n"
    return re.fullmatch(pattern, text) is not None


@dataclass
class Reader:
    """Somebody at a terminal. place: where they are; port, grpc_port: the service's, in place of
    8080 and 8090."""

    place: Path
    port: int
    grpc_port: int
    environment: dict[str, str]
    background: ExitStack = field(default_factory=ExitStack)

    def follow(self, step: Command | Edit) -> None:
        if isinstance(step, Edit):
            path = self.place / step.file
            text = path.read_text("utf-8")
            assert text.count(step.old) == 1, f"{step.file}: {step.old}"
            path.write_text(text.replace(step.old, step.new), "utf-8")
        elif step.line.startswith("cd "):
            self.place /= step.line[3:]
        elif step.line == "encore up":
            self.background.enter_context(self.up(step))
        else:
            self.run(step)

    def run(self, step: Command) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            ended = subprocess.run(
                ["bash", "-o", "pipefail", "-c", self.here(step.line)],
                cwd=self.place,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
            )
            assert ended.returncode == 0, f"{step.line}\n{ended.stdout}{ended.stderr}"
            shown = tuple(map(self.here, step.shown))
            if matches(shown, ended.stdout):
                return
            again = step.line.startswith(LOOKS) and time.monotonic() < deadline
            wanted = "\n".join(shown)
            assert again, f"{step.line}\nprinted\n{ended.stdout}\nshown\n{wanted}"
            time.sleep(0.2)

    @contextmanager
    def up(self, step: Command) -> Iterator[None]:
        """The other terminal; Ctrl-C at the end."""
        log = self.place.parent / "up.log"
        shown = tuple(map(self.here, step.shown))
        with log.open("w") as out:
            stack = subprocess.Popen(
                self.here(step.line).split(),
                cwd=self.place,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + COMMAND_S
            while not matches(shown, log.read_text()) and time.monotonic() < deadline:
                assert stack.poll() is None, log.read_text()
                time.sleep(0.1)
            assert matches(shown, log.read_text()), log.read_text()
            yield
            stack.send_signal(signal.SIGTERM)  # as Ctrl-C; an interrupt may be blocked here
            assert stack.wait(COMMAND_S) == 0, log.read_text()
        finally:
            if stack.poll() is None:
                stack.kill()
                stack.wait()

    def here(self, text: str) -> str:
        text = text.replace(f"127.0.0.1:{PORT}", f"127.0.0.1:{self.port}")
        return text.replace(f"127.0.0.1:{GRPC_PORT}", f"127.0.0.1:{self.grpc_port}")


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """Has `encore` and `python` on the path, and a port that is free."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, words in {"encore": "-m encore ", "python": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (tools / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ENCORE_")}
    port, grpc_port = free_port(), free_port()
    inherited = filter(None, [environment.get("PYTHONPATH")])
    environment |= {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *inherited]),
        "ENCORE_HTTP_PORT": str(port),
        "ENCORE_GRPC_PORT": str(grpc_port),
    }
    return Reader(tmp_path, port, grpc_port, environment)


def test_the_tutorial_does_what_it_says(reader: Reader) -> None:
    with reader.background:
        for step in steps(PAGE.read_text("utf-8")):
            reader.follow(step)
            listeners = reader.place / "listeners.py"
            if listeners.exists():  # the service answers at another port than the page's
                listeners.write_text(reader.here(listeners.read_text("utf-8")), "utf-8")


def test_listeners_without_a_service_say_what_to_start(reader: Reader) -> None:
    reader.run(Command("encore init songs", ("…",)))
    script = reader.place / "songs" / "listeners.py"
    script.write_text(reader.here(script.read_text("utf-8")), "utf-8")
    ended = subprocess.run([sys.executable, script, "1"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"127.0.0.1:{reader.port}: ")
    assert ended.stderr.endswith("does `encore up` run in another terminal, and say `ready`?\n")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (("a  b",), "a    b\n", True),
        (("a … c",), "a 1 2 c\n", True),
        (("a", "…", "c"), "a\n1\n2\nc\n", True),
        (("a", "…"), "a\n", True),
        (("[…]",), "[1, 2]\n", True),
        (("a",), "a\nb\n", False),
        (("1.5",), "125\n", False),
        ((), "", True),
        ((), "a\n", False),
    ],
)
def test_matching(shown: tuple[str, ...], printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def test_steps_of_a_page() -> None:
    page = (
        "a\n```console\n$ x 1\n1\n2\n$ y\n```\n```diff\n--- f\n k\n-o\n+n\n```\n```sh\n$ z\n```\n"
    )
    assert steps(page) == [
        Command("x 1", ("1", "2")),
        Command("y", ()),
        Edit("f", "k\no\n", "k\nn\n"),
    ]
