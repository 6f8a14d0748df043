"""`encore contracts`, and the folder that this repository publishes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from encore.cli import main
from encore.contracts import compare, require_current, schema_files, write_schemas
from schemas.errors import PlanError
from schemas.plan import Plan, dump_plan, load_plan
from tests.contracts.golden import CONTRACTS, GOLDEN, golden_files
from tests.schemas.test_row import FLATC

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "feature_repo" / "plan.lock.json"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load_plan(LOCK.read_bytes())


def test_the_published_schemas_are_current(plan: Plan) -> None:
    """When this fails: `encore contracts`, and commit what it wrote."""
    require_current(CONTRACTS, plan)
    views = {f"rows/{view.name}.fbs" for view in plan.views}
    service = {"open_inference.proto", "openapi.json"}
    assert set(schema_files(plan)) == {"action.fbs", "rank_record.fbs", *service, *views}


@pytest.mark.parametrize("name", sorted(golden_files()))
def test_golden_files_are_current(name: str) -> None:
    """A format changed, or `python -m tests.contracts.golden` was forgotten."""
    assert (GOLDEN / name).read_bytes() == golden_files()[name]


def test_flatc_takes_every_schema(tmp_path: Path) -> None:
    schemas = sorted(map(str, CONTRACTS.rglob("*.fbs")))
    command = [FLATC, "--java", "--ts", "-o", str(tmp_path), *schemas]
    assert subprocess.run(command, check=True, capture_output=True).returncode == 0
    assert (tmp_path / "encore" / "ActionBatch.java").exists()
    assert (tmp_path / "encore" / "rows" / "Users.java").exists()


def test_what_is_written_is_current_and_stays(plan: Plan, tmp_path: Path) -> None:
    assert write_schemas(tmp_path, plan).changed == tuple(schema_files(plan))
    require_current(tmp_path, plan)
    assert not write_schemas(tmp_path, plan)


def test_row_schemas_of_views_that_are_gone_are_removed(plan: Plan, tmp_path: Path) -> None:
    write_schemas(tmp_path, plan)
    own = tmp_path / "rows" / "of_somebody_else.fbs"
    own.write_text("table Other {}\n")
    smaller = replace(plan, views=plan.views[1:])
    gone = f"rows/{plan.views[0].name}.fbs"
    assert compare(tmp_path, smaller).left == (gone,)
    assert write_schemas(tmp_path, smaller).left == (gone,)
    assert not (tmp_path / gone).exists()
    assert own.exists()


def test_schemas_that_are_not_current_are_named(plan: Plan, tmp_path: Path) -> None:
    write_schemas(tmp_path, plan)
    (tmp_path / "action.fbs").write_text("changed")
    with pytest.raises(PlanError) as refused:
        require_current(tmp_path, replace(plan, views=plan.views[1:]))
    assert str(refused.value) == (
        f"{tmp_path}: needs the schemas of plan version {plan.version}, got action.fbs missing or "
        f"different, rows/{plan.views[0].name}.fbs of no view; run `encore contracts {tmp_path}`"
    )


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan) -> Path:
    """A working directory whose feature repo holds the plan."""
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "feature_repo" / "plan.lock.json").write_text(dump_plan(plan))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_and_checks(
    repo: Path, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["contracts", "out", "--check"]) == 1
    assert "action.fbs missing or different" in capsys.readouterr().err
    assert not (repo / "out").exists()
    assert main(["contracts", "out", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["written"] == said["schemas"] == list(schema_files(plan))
    assert main(["contracts", "out", "--check"]) == 0
    assert "none: current" in capsys.readouterr().out


def test_the_command_needs_a_lock_file(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repo / "feature_repo" / "plan.lock.json").unlink()
    assert main(["contracts", "out"]) == 1
    assert "needs a lock file, got none; run `encore apply`" in capsys.readouterr().err
