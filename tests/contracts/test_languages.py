"""The examples in other languages read our bytes, and we read theirs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.actions import decode_batch
from schemas.layout import layout_of
from schemas.plan import load_plan
from schemas.row import encode_rows, seal
from tests.contracts.golden import CONTRACTS, GOLDEN, SENT_MS, actions, row_json
from tests.schemas.test_row import _as_json, _flatc
from tests.schemas.views import OLDER, SAMPLE, random_rows

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "languages"
LOCK = ROOT / "feature_repo" / "plan.lock.json"


@dataclass(frozen=True, slots=True)
class Example:
    """An example program: the words that start it."""

    command: tuple[str, ...]

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        line = [*self.command, *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)

    def json(self, *arguments: str | Path) -> Any:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def _javascript() -> Example:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on the PATH")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    major, minor = re.findall(r"\d+", version.stdout)[:2]
    if (int(major), int(minor)) < (20, 15):
        pytest.skip(f"node {version.stdout.strip()} has no crc32: 20.15 or newer is needed")
    return Example((node, str(EXAMPLES / "encore.mjs")))


def _java(classes: Path) -> Example:
    java, javac = shutil.which("java"), shutil.which("javac")
    if java is None or javac is None:
        pytest.skip("no java and javac on the PATH")
    command = [javac, "--release", "17", "-Xlint:all", "-Werror", "-d", str(classes)]
    built = subprocess.run(
        [*command, str(EXAMPLES / "Encore.java")], capture_output=True, text=True, check=False
    )
    if "release version 17 not supported" in built.stderr:
        pytest.skip("javac is older than 17")
    assert built.returncode == 0, built.stderr
    return Example((java, "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", str(classes), "Encore"))


@pytest.fixture(scope="module", params=["javascript", "java"])
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    if request.param == "java":
        return _java(tmp_path_factory.mktemp("classes"))
    return _javascript()


@pytest.mark.parametrize(
    ("kind", "schema", "name"),
    [
        ("row", "golden/user_row.fbs", "user_row"),
        ("row", "golden/batch_row.fbs", "batch_row"),
        ("message", "action.fbs", "action_batch"),
        ("message", "rank_record.fbs", "rank_record"),
    ],
)
def test_golden_files_are_read(example: Example, kind: str, schema: str, name: str) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    found = example.json(kind, CONTRACTS / schema, GOLDEN / f"{name}.bin")
    assert found == expected


def test_its_action_batch_is_ours(example: Example, tmp_path: Path) -> None:
    assert example.run("write", tmp_path / "batch.bin").returncode == 0
    raw = (tmp_path / "batch.bin").read_bytes()
    batch = decode_batch(raw)
    assert batch.sent_ms == SENT_MS
    np.testing.assert_array_equal(batch.actions, actions())
    assert (
        batch.actions.tobytes()
        == decode_batch((GOLDEN / "action_batch.bin").read_bytes()).actions.tobytes()
    )
    expected = json.loads((GOLDEN / "action_batch.json").read_text("utf-8"))
    assert example.json("message", CONTRACTS / "action.fbs", tmp_path / "batch.bin") == expected


def test_rows_of_every_published_view_are_read(example: Example, tmp_path: Path) -> None:
    for view in load_plan(LOCK.read_bytes()).views:
        layout = layout_of(view)
        rows = random_rows(layout, 11, 1)
        (tmp_path / "row.bin").write_bytes(encode_rows(layout, rows)[0])
        schema = CONTRACTS / "rows" / f"{view.name}.fbs"
        assert example.json("row", schema, tmp_path / "row.bin") == row_json(layout, rows)


def test_an_older_row_reads_under_a_newer_schema(example: Example, tmp_path: Path) -> None:
    """What the older plan did not have is null."""
    older, newer = layout_of(OLDER), layout_of(SAMPLE)
    rows = random_rows(older, 5, 1)
    (tmp_path / "row.bin").write_bytes(encode_rows(older, rows)[0])
    (tmp_path / "newer.fbs").write_text(newer.fbs)
    found = example.json("row", tmp_path / "newer.fbs", tmp_path / "row.bin")
    expected = row_json(older, rows)
    expected["row"] |= {"later": None, "v_later": None}
    assert found == expected


def test_a_newer_row_reads_under_an_older_schema(example: Example, tmp_path: Path) -> None:
    """What the older schema does not know is passed over."""
    older, newer = layout_of(OLDER), layout_of(SAMPLE)
    rows = random_rows(newer, 6, 1)
    (tmp_path / "row.bin").write_bytes(encode_rows(newer, rows)[0])
    (tmp_path / "older.fbs").write_text(older.fbs)
    found = example.json("row", tmp_path / "older.fbs", tmp_path / "row.bin")
    expected = row_json(newer, rows)
    del expected["row"]["later"], expected["row"]["v_later"]
    assert found == expected


def test_a_damaged_row_is_refused(example: Example, tmp_path: Path) -> None:
    raw = bytearray((GOLDEN / "user_row.bin").read_bytes())
    raw[40] ^= 1
    (tmp_path / "damaged.bin").write_bytes(raw)
    done = example.run("row", GOLDEN / "user_row.fbs", tmp_path / "damaged.bin")
    assert done.returncode != 0
    assert "row: needs the checksum of its bytes, got another" in done.stderr


def test_a_buffer_of_flatc_is_read(example: Example, tmp_path: Path) -> None:
    """Another writer lays the same table out elsewhere; the trailer says layout 0."""
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 1, 1)
    (tmp_path / "row.fbs").write_text(layout.fbs)
    (tmp_path / "row.json").write_text(json.dumps(_as_json(layout, rows)))
    _flatc("--binary", "-o", tmp_path, tmp_path / "row.fbs", tmp_path / "row.json")
    front = (tmp_path / "row.bin").read_bytes()
    fence = int(rows.epoch[0]), int(rows.offset[0])
    (tmp_path / "row.bin").write_bytes(seal(front, 0, fence, int(rows.newest_ms[0])))
    expected = row_json(layout, rows)
    expected["trailer"]["layout"] = 0
    assert example.json("row", tmp_path / "row.fbs", tmp_path / "row.bin") == expected
