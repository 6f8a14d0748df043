"""The command line, the report and the turns: what every benchmark stands on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import __main__ as runner
from bench.report import Benchmark, Options, Report, as_json, show, table
from bench.timing import take_turns
from schemas.errors import LocalError


def test_lists_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [each.name for each in runner.BENCHMARKS]


def test_an_unknown_name_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        runner.main(["formatt"])
    assert ended.value.code == 2
    assert "invalid choice: 'formatt'" in capsys.readouterr().err


def fake(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, wrong: str = "") -> None:
    def run(options: Options) -> Report:
        if error is not None:
            raise error
        options.say("under way")
        report = Report()
        report.table("a title", ["name", "ms"], [("one", 1.5)])
        report.line["value"] = 1 / 3
        report.check(not wrong, wrong)
        return report

    monkeypatch.setattr(runner, "BENCHMARKS", (Benchmark("fake", "for a test", "fake"),))
    monkeypatch.setattr(
        "bench.__main__.importlib",
        SimpleNamespace(import_module=lambda _: SimpleNamespace(run=run)),
    )


def test_the_last_line_is_the_object_that_the_file_gets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake(monkeypatch)
    file = tmp_path / "line.json"
    assert runner.main(["fake", "--quick", "--json", str(file)]) == 0
    captured = capsys.readouterr()
    last = json.loads(captured.out.splitlines()[-1])
    assert last == json.loads(file.read_text())
    assert (last["bench"], last["quick"], last["value"]) == ("fake", True, 0.3333)
    assert last["cores"] >= 1
    assert captured.err == "under way\n"


def test_what_a_benchmark_finds_wrong_follows_its_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake(monkeypatch, wrong="2 rows differ")
    file = tmp_path / "line.json"
    assert runner.main(["fake", "--json", str(file)]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1]) == json.loads(file.read_text())
    assert captured.err.splitlines()[-1] == "fake: WRONG: 2 rows differ"


def test_what_cannot_run_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, LocalError("bench.data", required="a file", got="none"))
    assert runner.main(["fake"]) == 1
    assert capsys.readouterr().err == "fake: bench.data: needs a file, got none\n"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.0, "0"),
        (12_345, "12,345"),
        (12_345.6, "12,346"),
        (1.2345, "1.23"),
        (-0.00123, "-0.00123"),
        ("text", "text"),
    ],
)
def test_cells(cell: str | int | float | None, text: str) -> None:
    assert show(cell) == text


def test_table() -> None:
    assert table(["a", "number"], [("x", 1), ("longer", None)]) == [
        "a       number",
        "------  ------",
        "x            1",
        "longer       -",
    ]


def test_json_has_no_nan() -> None:
    line: dict[str, object] = {
        "a": float("nan"),
        "n": {1: float("inf"), "c": 123456.0, "d": None},
    }
    assert json.loads(as_json(line)) == {"a": None, "n": {"1": None, "c": 123500, "d": None}}


def test_contenders_take_turns_on_the_same_input() -> None:
    calls: list[tuple[str, int]] = []
    contenders = {
        name: lambda turn, name=name: calls.append((name, turn)) for name in ("a", "b", "c")
    }
    timings = take_turns(contenders, turns=4, warm=1)
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == dict.fromkeys(
        "abc", 4
    )
    by_turn = [calls[at : at + 3] for at in range(0, len(calls), 3)]
    assert [{turn for _, turn in each} for each in by_turn] == [{-1}, {0}, {1}, {2}, {3}]
    assert ["".join(name for name, _ in each) for each in by_turn[1:]] == [
        "abc", "bca", "cab", "abc",
    ]  # fmt: skip


def test_a_settled_call_follows_one_of_its_own() -> None:
    calls: list[tuple[str, int]] = []
    contenders = {name: lambda turn, name=name: calls.append((name, turn)) for name in ("a", "b")}
    take_turns(contenders, turns=2, warm=0, settle=True)
    assert calls == [("a", 1), ("a", 0), ("b", 1), ("b", 0), ("b", 2), ("b", 1), ("a", 2), ("a", 1)]


def test_ratios_are_taken_turn_by_turn_and_tails_need_samples() -> None:
    timings = take_turns({"a": lambda _: None, "b": lambda _: None}, turns=400)
    timings.seconds["a"][:] = [1, 100] * 200
    timings.seconds["b"][:] = [2, 300] * 200
    assert timings.ratio("b", "a") == 2.5
    assert timings.percentile("a", 95) == 100
    assert timings.percentile("a", 99) is None
