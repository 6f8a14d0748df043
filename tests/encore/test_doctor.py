"""What each check finds, on a sound installation and on a broken one."""

from __future__ import annotations

import socket
from importlib.metadata import version
from pathlib import Path

import pytest

from encore import doctor
from encore.local import start_broker
from encore.settings import Settings
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, topics_keys
from schemas.plan import Plan, dump_plan
from schemas.succession import End, Succession, dump_succession
from store.redis_store import RedisRowStore
from streams.admin import ensure_topics
from tests.patience import patient


def states(checks: object) -> dict[str, str]:
    return {check.name: check.state for check in checks}  # type: ignore[attr-defined]


def test_this_installation_is_sound() -> None:
    assert doctor.python().state == "ok"
    assert set(states(doctor.binaries()).values()) == {"ok"}
    found = doctor.packages(doctor.PROJECT / "constraints.txt")
    assert found.state == "ok", found


@pytest.mark.parametrize(("path", "state"), [("native", "ok"), ("numpy", "warn")])
def test_how_requests_are_computed(monkeypatch: pytest.MonkeyPatch, path: str, state: str) -> None:
    monkeypatch.setattr(doctor, "path_in_use", lambda: path)
    check = doctor.kernels()
    assert check.state == state
    assert ("make kernels" in check.do) == (state == "warn")


def test_another_version_is_named(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# comment\nnumpy==0.1\nno-such-package==3\n")
    check = doctor.packages(constraints)
    assert check.state == "fail"
    assert f"numpy {version('numpy')} (pinned 0.1)" in check.found
    assert "no-such-package" not in check.found


def test_no_constraints_is_no_failure(tmp_path: Path) -> None:
    assert doctor.packages(tmp_path / "constraints.txt").state == "skip"


def test_nothing_configured_is_skipped(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert states(doctor.broker(settings)) == {"broker": "skip"}
    assert states(doctor.store(settings)) == {"store": "skip"}


def test_configured_and_absent_fails(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, bootstrap="127.0.0.1:9", store_url="redis://u:secret@127.0.0.1:9/0"
    )
    checks = [*doctor.broker(settings), *doctor.store(settings)]
    assert states(checks) == {"broker": "fail", "store": "fail"}
    assert "secret" not in str(checks)


def test_topics_that_actions_moved_to_are_looked_at(valkey: str, tmp_path: Path) -> None:
    """What they have left may be deleted, and nobody makes it again."""
    url = valkey.removesuffix("/0") + "/13"
    server = start_broker(tmp_path)
    settings = Settings(data_dir=tmp_path, bootstrap=server.address, store_url=url)
    moved = Succession.of("actions", settings.partitions).grown("actions.2", 8)
    ended = moved.with_end("actions", End("the old log", {0: 3}, final=True))
    key, _ = topics_keys("actions")
    try:
        with RedisRowStore(url) as rows:
            rows.put_text(key, dump_succession(moved))
            found = states(doctor.broker(settings))
            assert found["topic actions"] == found["topic actions.2"] == "warn"
            rows.put_text(key, dump_succession(ended))
            found = states(doctor.broker(settings))
            assert not {"topic actions", "topic actions.by-item"} & set(found)
            assert found["topic actions.2.by-item"] == found["topic actions.dead"] == "warn"
            ensure_topics(server.address, {"actions": settings.partitions, "actions.2": 7})
            found = states(doctor.broker(settings))
            assert (found["topic actions"], found["topic actions.2"]) == ("ok", "fail")
    finally:
        server.child.kill()


def test_a_taken_port_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        assert doctor.http_port(Settings(http_port=port)).state == "ok", "bound, but not listening"
        other.listen()
        unused = Settings(http_port=port, grpc_port=port, data_dir=tmp_path)
        for check in (doctor.http_port(unused), doctor.grpc_port(unused)):
            found = f"127.0.0.1:{port} is taken by something else"
            assert (check.state, check.found) == ("fail", found)


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.disk(tmp_path / "not" / "there").found.endswith(f"free at {tmp_path}")
    monkeypatch.setattr(doctor, "NO_DISK_BYTES", 1 << 62)
    assert doctor.disk(tmp_path).state == "fail"


def test_store_and_plan(valkey: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, repo=tmp_path, store_url=valkey)
    with RedisRowStore(patient(valkey)) as rows:
        before = rows.get_text(PLAN_KEY), rows.get_text(PLAN_VERSION_KEY)
        try:
            first, second = Plan(1, 0, (), ()), Plan(2, 1, (), ())
            rows.put_text(PLAN_KEY, dump_plan(first))
            assert states(doctor.store(settings))["plan"] == "warn", "no lock file"
            (tmp_path / "plan.lock.json").write_text(dump_plan(first))
            assert set(states(doctor.store(settings)).values()) == {"ok"}
            (tmp_path / "plan.lock.json").write_text(dump_plan(second))
            assert states(doctor.store(settings))["plan"] == "fail"
            rows.put_text(PLAN_KEY, "{}")
            assert states(doctor.store(settings))["plan"] == "fail"
        finally:
            for key, text in zip((PLAN_KEY, PLAN_VERSION_KEY), before, strict=True):
                if text is not None:
                    rows.put_text(key, text)


def test_no_plan_is_published(tmp_path: Path) -> None:
    assert doctor.plan(lambda key: None, tmp_path).state == "fail"


def test_a_store_that_evicts_fails(tmp_path: Path) -> None:
    from encore.local import start_store
    from tests.encore.test_local import ask

    server = start_store(tmp_path)
    try:
        ask(server.port, "CONFIG SET maxmemory-policy allkeys-lru", "CONFIG SET appendonly no")
        url = f"redis://{server.address}/0"
        settings = Settings(data_dir=tmp_path, repo=tmp_path, store_url=url)
        found = states(doctor.store(settings))
        # Replicas keep the file here, and none is connected.
        update = {"fsynced_by_store": False, "fsynced_by_replicas": 1}
        others = states(doctor.store(settings.model_copy(update=update)))
    finally:
        server.child.kill()
    assert found == {"store": "ok", "store eviction": "fail", "store log": "fail", "plan": "fail"}
    assert others == {name: state for name, state in found.items() if name != "store log"} | {
        "store replicas": "fail"
    }
