"""The compose file, the image and the dashboard, as far as they can be judged without an engine."""

from __future__ import annotations

import ast
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from encore.cli import app
from encore.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings, load_settings, variable
from streams.app import DRAIN_S, STOP_S

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def resolved(text: str) -> str:
    """A compose value with the defaults of its variables: `${NAME:-default}`."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def image_environment() -> dict[str, str]:
    """The ENCORE_* variables that the image sets."""
    return dict(re.findall(r"(ENCORE_\w+)=(\S+)", DOCKERFILE))


# --- compose ------------------------------------------------------------------------------------


def test_every_process_of_the_platform_is_there() -> None:
    commands = {name: " ".join(SERVICES[name]["command"]) for name in OURS}
    assert commands == {
        "apply": "apply",
        "worker": "stream",
        "items": "items",
        "sink": "sink",
        "ship": "ship",
        "service": "serve",
        "watch": "stream metrics",
        "train": "train",
    }
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert {command.split()[0] for command in commands.values()} <= known


@pytest.mark.parametrize("name", OURS)
def test_the_settings_are_taken(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unknown variables and values out of range would be refused here."""
    for variable_name in [each for each in os.environ if each.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(variable_name)
    monkeypatch.chdir(tmp_path)
    given = image_environment() | SERVICES[name]["environment"]
    for key, value in given.items():
        monkeypatch.setenv(key, resolved(str(value)))
    settings = load_settings()
    assert (settings.bootstrap, settings.store_url) == ("kafka:9092", "redis://store:6379/0")
    assert settings.http_host == "0.0.0.0"
    assert str(settings.data_dir) == "/var/lib/encore"


def test_a_drain_has_the_time_it_may_take() -> None:
    """What is killed in its drain repeats; what ends by itself commits."""
    for name in OURS:
        grace = re.fullmatch(r"(\d+)s", SERVICES[name]["stop_grace_period"])
        assert grace is not None
        assert int(grace[1]) > DRAIN_S + STOP_S


def test_the_item_cache_lies_in_shared_memory_that_is_there() -> None:
    service = SERVICES["service"]
    assert service["environment"]["ENCORE_ITEM_CACHE_DIR"].startswith("/dev/shm/")
    assert service["shm_size"] == "1gb"
    others = {name: SERVICES[name]["environment"] for name in OURS if name != "service"}
    own = {"ENCORE_ITEM_CACHE_DIR": "/dev/shm/encore", "ENCORE_METRICS_PORT": 8100}
    assert all({**given, **own} == service["environment"] for given in others.values())


def test_every_encore_variable_is_a_setting() -> None:
    known = {variable(name) for name in Settings.model_fields} | {CONFIG_VARIABLE}
    texts = DOCKERFILE + (ROOT / "docker-compose.yml").read_text("utf-8")
    named = set(re.findall(r"\bENCORE_[A-Z_]+\b", texts))
    assert named <= known
    assert named


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned(name: str) -> None:
    repository, _, tag = SERVICES[name]["image"].partition(":")
    assert repository
    assert re.fullmatch(r"v?\d+\.\d+\.\d+(-alpine)?", tag)


def test_the_image_carries_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"encore:{project['version']}"}


def test_ports_are_published_on_loopback_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"kafka", "service", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert "network_mode" not in json.dumps(COMPOSE)


def test_what_is_waited_for_can_be_waited_for() -> None:
    """Healthy needs a health check, completed needs a process that ends."""
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            needed = SERVICES[other]
            if wait["condition"] == "service_healthy":
                assert needed["healthcheck"].get("test"), (name, other)
            else:
                assert wait["condition"] == "service_completed_successfully"
                assert needed["restart"] == "no", (name, other)
    for name in ("worker", "items", "sink", "ship", "service", "watch"):
        assert set(SERVICES[name]["depends_on"]) == {"kafka", "store", "apply"}


def test_volumes_and_mounted_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (ROOT / source).exists() if source[0] == "." else source in COMPOSE["volumes"]
            assert known, volume
    data = {volume.split(":")[1] for name in OURS for volume in SERVICES[name]["volumes"]}
    assert data == {image_environment()["ENCORE_DATA_DIR"]}


def test_the_store_keeps_what_it_is_given() -> None:
    command = SERVICES["store"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_topics_are_made_by_encore_alone() -> None:
    """The broker's default is to make what somebody writes to, with one partition."""
    assert SERVICES["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_the_broker_takes_messages_as_large_as_the_producers_send() -> None:
    source = (ROOT / "streams" / "producer.py").read_text("utf-8")
    limit = re.search(r'"max_request_size": ([^,]+),', source)
    assert limit is not None
    left, right = (ast.literal_eval(part) for part in limit[1].split("<<"))
    assert SERVICES["kafka"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"] == left << right


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's (instruction, rest), continuation lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    lines = (line for line in joined.splitlines() if line.strip() and line[0] != "#")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


# --- the image ----------------------------------------------------------------------------------


def test_the_image_is_pinned_and_not_root() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert all(re.fullmatch(r"python:3\.11\.\d+(-slim)?-bookworm", base) for base in bases)
    assert bases[-1].endswith("-slim-bookworm")
    last = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert re.findall(r"^USER (\S+)", last, re.M) == ["encore"]
    assert 'ENTRYPOINT ["encore"]' in last


def test_the_dockerfile_keeps_to_the_common_rules() -> None:
    """Of hadolint's rules DL3000, DL3020, DL3022, DL3025, DL3042, DL4006."""
    stages = {"build"}
    for word, rest in instructions():
        assert word != "ADD", "COPY says what it does"
        if word == "WORKDIR":
            assert rest.startswith("/")
        if word in ("CMD", "ENTRYPOINT"):
            assert isinstance(json.loads(rest), list)
        if word == "COPY" and (source := re.search(r"--from=(\S+)", rest)):
            assert source[1] in stages
        if word == "RUN":
            assert not re.search(r"\bsudo\b|\bapt\b", rest)
            assert not re.search(r"[^|]\|[^|]", rest), "a pipe hides what failed before it"
    build = DOCKERFILE[: DOCKERFILE.rindex("FROM ")]
    assert "PIP_NO_CACHE_DIR=1" in build


def test_the_build_context_holds_every_package() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    taken = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} <= taken
    assert {"pyproject.toml", "constraints.txt", "feature_repo"} <= taken
    assert set(project["project"]["license-files"]) <= taken
    assert all((ROOT / name).exists() for name in taken)


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers everything with one status; yields its port."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()
    assert asked == ["/v2/health/ready"]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_the_service(status: int, healthy: bool) -> None:
    written = re.search(r"HEALTHCHECK.*?CMD (\[.*?\])\n", DOCKERFILE, re.S)
    assert written is not None
    program, *arguments = json.loads(written[1])
    assert program == "python"
    with answering(status) as port:
        done = subprocess.run(
            [sys.executable, *arguments],
            env={"ENCORE_HTTP_PORT": str(port)},
            capture_output=True,
            check=False,
        )
    assert (done.returncode == 0) is healthy
