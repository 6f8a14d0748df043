"""`encore topics`, as somebody at a terminal sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from encore.cli import main
from encore.local import start_broker
from store.keyspace import RedisKeySpace


def test_a_move_by_hand(
    tmp_path: Path, valkey: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_broker(tmp_path)
    url = valkey.removesuffix("/0") + "/11"
    monkeypatch.setenv("ENCORE_BOOTSTRAP", server.address)
    monkeypatch.setenv("ENCORE_STORE_URL", url)
    monkeypatch.setenv("ENCORE_DATA_DIR", str(tmp_path / "data"))
    try:
        line = tmp_path / "actions.jsonl"
        line.write_text('{"user": 1, "item": 3, "type": "like"}\n')
        assert main(["topics", "show", "--json"]) == 0
        assert [each["state"] for each in json.loads(capsys.readouterr().out)] == ["open"]
        assert main(["send", str(line)]) == 0
        assert main(["topics", "grow", "--partitions", "6"]) == 0
        assert main(["topics", "end"]) == 0
        assert "actions: 4 partitions, ended" in capsys.readouterr().out
        assert main(["topics", "show", "--json"]) == 0
        states = {each["topic"]: each["state"] for each in json.loads(capsys.readouterr().out)}
        assert states == {"actions": "ended", "actions.2": "open"}
        assert main(["send", str(line), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["actions"] == 1
        assert main(["topics", "carry", "--json"]) == 0
        carried = json.loads(capsys.readouterr().out)
        assert (carried["carried"], carried["left"]) == (0, 0)
        assert main(["topics", "show"]) == 0
        assert "behind its end" in capsys.readouterr().out
        assert main(["stream", "status", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {each["topic"] for each in found["partitions"] if each["does"] == "rows"} == {
            *("actions", "actions.2")
        }
        assert found["lag"] > 0
    finally:
        with RedisKeySpace(url) as store:
            for page in store.pages("encore:*"):
                store.unlink(page)
        server.child.kill()
