"""`encore apply` against Feast's own apply and registry, on a repo written to disk."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from feast import FeatureStore, FeatureView
from feast.protos.feast.core.StreamFeatureView_pb2 import (
    StreamFeatureView as StreamFeatureViewProto,
)

from catalog.apply import ApplyResult, apply, plan_repo
from catalog.difference import Difference
from catalog.lock import LOCK_NAME, read_lock, require_lock, write_lock
from catalog.online_store import EncoreOnlineStore
from catalog.publish import publish, published
from catalog.registry import read_registry, registered
from schemas.errors import DeclarationError, PlanError
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY
from schemas.plan import Plan, dump_plan
from store.memory import MemoryRowStore
from tests.catalog.declarations import Repo

YAML = """
project: small
provider: local
registry: .encore/registry.db
entity_key_serialization_version: 3
online_store:
  type: catalog.online_store.EncoreOnlineStore
  store_url: ${ENCORE_STORE_URL}
"""
ENTITIES = """
from catalog.declare import user_entity, item_entity

user = user_entity("user", join_key="user_id")
video = item_entity("video", join_key="video_id")
"""
VIEWS = """
from entities import user, video
from catalog.declare import *

videos = batch_view("videos", video, "sources/videos.parquet", [
    entity_id(video, identity(100)),
    feature("author_id", Int64, hashed(64)),
    feature("kind", String, vocab(["song", "dance"])),
])
activity = streamed_view("user_activity", user, actions("actions"), [
    count("clicks_1h", "click", HOUR, log_buckets(8, low=1, high=100)),
    last_n("last_videos", "play.item", 5, shares="videos:video_id"),
])
ranking = feature_service("ranking", [activity, videos])
"""
WINDOW = '    count("likes_1d", "like", DAY, log_buckets(8, low=1, high=100)),\n'


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    path = tmp_path / "feature_repo"
    path.mkdir()
    (path / "feature_store.yaml").write_text(YAML)
    (path / "entities.py").write_text(ENTITIES)
    (path / "views.py").write_text(VIEWS)
    return path


def edit(repo: Path, old: str, new: str) -> None:
    text = (repo / "views.py").read_text()
    assert old in text
    (repo / "views.py").write_text(text.replace(old, new))


def add_window(repo: Path) -> None:
    edit(repo, "    last_n(", f"{WINDOW}    last_n(")


def files(result: ApplyResult) -> list[tuple[bytes, int]]:
    return [(each.read_bytes(), each.stat().st_mtime_ns) for each in (result.lock, result.registry)]


def test_a_first_apply_writes_registry_and_lock(repo: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    result = apply(repo)
    assert result.changed
    assert result.registry_changed
    assert not result.published
    assert result.parent is None
    assert read_lock(repo / LOCK_NAME) == result.plan
    registry = read_registry(result.registry)
    assert registry is not None
    assert [view.spec.name for view in registry.stream_feature_views] == ["user_activity"]
    assert sys.path == path
    assert not {"entities", "views"} & (set(sys.modules) - modules)
    assert not list(repo.rglob("__pycache__"))


def test_a_no_op_apply_touches_nothing(repo: Path) -> None:
    before = files(apply(repo))
    again = apply(repo)
    assert not again.changed
    assert not again.registry_changed
    assert files(again) == before
    assert again.plan.version == 1


def test_a_comment_a_reorder_and_a_lost_registry_change_no_plan(repo: Path) -> None:
    first = apply(repo)
    first.registry.unlink()
    edit(repo, "from catalog", "# a comment\nfrom catalog")
    assert apply(repo).registry_changed
    author = '    feature("author_id", Int64, hashed(64)),\n'
    edit(repo, author, "")
    edit(repo, 'vocab(["song", "dance"])),\n', f'vocab(["song", "dance"])),\n{author}')
    turned = apply(repo).plan
    assert turned.views == first.plan.views


def test_a_window_more(repo: Path) -> None:
    first = apply(repo)
    add_window(repo)
    second = apply(repo)
    assert second.parent == first.plan
    assert (second.plan.version, second.plan.parent) == (2, 1)
    assert second.plan.view("user_activity").generation == 2
    assert second.plan.view("videos") == first.plan.view("videos")
    assert second.plan.service("ranking").user_slots[1].feature == "likes_1d"


def test_a_view_less(repo: Path) -> None:
    apply(repo)
    edit(repo, "ranking = feature_service", "rank = feature_service")
    edit(repo, '"ranking", [activity, videos]', '"items", [videos]')
    edit(repo, "activity = streamed_view", "_ = lambda: streamed_view")
    plan = apply(repo).plan
    assert [view.name for view in plan.views] == ["videos"]
    assert [service.name for service in plan.services] == ["items"]


def test_a_refusal_leaves_everything_as_it_was(repo: Path) -> None:
    before = files(apply(repo))
    edit(repo, 'vocab(["song", "dance"])', "log_buckets(8, low=1, high=2)")
    with pytest.raises(DeclarationError, match=r"videos.kind.transform"):
        apply(repo)
    assert files(apply_after(repo)) == before


def apply_after(repo: Path) -> ApplyResult:
    edit(repo, "log_buckets(8, low=1, high=2)", 'vocab(["song", "dance"])')
    return apply(repo)


def test_a_crash_between_registry_and_lock_is_mended(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> bool:
        raise KeyboardInterrupt

    first = apply(repo)
    add_window(repo)
    with monkeypatch.context() as patched:
        patched.setattr("catalog.apply.write_lock", crash)
        with pytest.raises(KeyboardInterrupt):
            apply(repo)
    assert require_lock(repo / LOCK_NAME) == first.plan
    store = FeatureStore(repo_path=str(repo))
    held = registered_views(first.registry)
    with pytest.raises(PlanError, match=r"an older one of user_activity; run `encore apply`"):
        EncoreOnlineStore().update(store.config, [], held, [], [], True)
    second = apply(repo)
    assert second.changed
    assert not second.registry_changed
    EncoreOnlineStore().update(store.config, [], held, [], [], True)


def registered_views(path: Path) -> list[FeatureView]:
    registry = read_registry(path)
    assert registry is not None
    return list(registered(registry, "small").views)


def test_a_module_that_does_not_import_is_named_with_its_line(repo: Path) -> None:
    edit(repo, "HOUR", "HOURS")
    with pytest.raises(
        DeclarationError, match=r"views\.py:\d+: needs a module that imports.*HOURS"
    ):
        apply(repo)


def test_a_module_of_no_python_is_named_with_its_line(repo: Path) -> None:
    (repo / "wrong.py").write_text("one = 1\ntwo = [1\n")
    with pytest.raises(DeclarationError, match=r"^wrong\.py:2: .*got SyntaxError: '\[' was never"):
        apply(repo)


def test_an_unknown_feature_of_a_view_is_named_with_its_line(repo: Path) -> None:
    edit(repo, "[activity, videos]", '[activity, videos[["song"]]]')
    with pytest.raises(DeclarationError, match=r"views\.py:\d+.*Feature song does not exist"):
        apply(repo)


def test_on_demand_views_are_refused(repo: Path) -> None:
    (repo / "crosses.py").write_text(
        "from feast import Field\n"
        "from feast.on_demand_feature_view import on_demand_feature_view\n"
        "from feast.types import Float64\n"
        "from views import videos\n"
        '@on_demand_feature_view(sources=[videos], schema=[Field(name="x", dtype=Float64)])\n'
        "def cross(df):\n    return df\n"
    )
    with pytest.raises(DeclarationError, match=r"crosses.py.cross: needs a view that runs no code"):
        apply(repo)


def test_a_plain_stream_view_is_refused(repo: Path) -> None:
    edit(repo, "activity = streamed_view", "declared = streamed_view")
    edit(repo, "[activity, videos]", "[videos]")
    (repo / "plain.py").write_text(
        "import warnings\n"
        "from feast.stream_feature_view import StreamFeatureView\n"
        "from views import declared\n"
        "with warnings.catch_warnings():\n"
        '    warnings.simplefilter("ignore")\n'
        "    plain = StreamFeatureView(name='plain', source=declared.stream_source,\n"
        "        schema=declared.features, aggregations=declared.aggregations,\n"
        "        timestamp_field='time_ms')\n"
    )
    with pytest.raises(DeclarationError, match=r"plain: needs a stream feature view"):
        apply(repo)


def test_a_registry_with_code_is_refused_before_feast_reads_it(repo: Path) -> None:
    result = apply(repo)
    registry = read_registry(result.registry)
    assert registry is not None
    poisoned = StreamFeatureViewProto()
    poisoned.spec.name = "poisoned"
    poisoned.spec.project = "small"
    poisoned.spec.user_defined_function.body = b"cposix\nsystem\n(S'touch /nowhere'\ntR."
    registry.stream_feature_views.append(poisoned)
    result.registry.write_bytes(registry.SerializeToString())
    with pytest.raises(PlanError, match=r"needs a registry without user-defined functions"):
        apply(repo)


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"PK\x03\x04 not a registry"])
def test_a_registry_of_other_bytes_is_refused(repo: Path, data: bytes) -> None:
    result = apply(repo)
    result.registry.write_bytes(data)
    with pytest.raises(PlanError, match=r"needs a Feast registry"):
        apply(repo)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 1, "future": 2}'])
def test_a_lock_of_another_text_is_refused(repo: Path, text: str) -> None:
    apply(repo)
    (repo / LOCK_NAME).write_text(text)
    with pytest.raises(PlanError, match=r"plan.lock.json"):
        apply(repo)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("project: small\nprovider: nowhere\n", "needs a Feast configuration"),
        (
            "registry: s3://bucket/registry.db\nproject: small\nprovider: local\n",
            "needs a local file",
        ),
        ("project: [", "needs a Feast configuration"),
    ],
)
def test_a_configuration_that_cannot_be_used(repo: Path, text: str, message: str) -> None:
    (repo / "feature_store.yaml").write_text(text)
    with pytest.raises(DeclarationError, match=message):
        apply(repo)


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"feature_store.yaml.*got no such file"):
        apply(tmp_path)


# --- the lock file and the store ------------------------------------------------------------


def test_a_lock_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    lock = tmp_path / LOCK_NAME
    assert read_lock(lock) is None
    with pytest.raises(PlanError, match="run `encore apply`"):
        require_lock(lock)
    plan = Plan(1, 0, (), ())
    assert write_lock(lock, plan)
    assert not write_lock(lock, plan)
    assert [each.name for each in tmp_path.iterdir()] == [LOCK_NAME]
    assert lock.read_text() == dump_plan(plan)


def test_apply_publishes_to_a_store_by_compare_and_set(repo: Path) -> None:
    store = MemoryRowStore()
    first = apply(repo, store)
    assert first.published
    assert published(store) == first.plan
    assert not apply(repo, store).published
    add_window(repo)
    second = apply(repo, store)
    assert second.published
    assert published(store) == second.plan
    assert store.get_text(PLAN_VERSION_KEY) == "2"


def test_a_new_store_takes_any_version_and_a_lagging_one_catches_up() -> None:
    store = MemoryRowStore()
    assert publish(store, Plan(7, 6, (), ()))
    assert publish(store, Plan(9, 8, (), ()))
    assert published(store) == Plan(9, 8, (), ())


def test_of_two_plans_of_one_parent_the_second_is_refused() -> None:
    store = MemoryRowStore()
    assert publish(store, Plan(2, 1, (), ()))
    with pytest.raises(PlanError, match="needs a plan older than version 2, got version 2"):
        publish(store, Plan(2, 1, Repo().compiled().views, ()))


def test_a_plan_of_another_line_is_refused() -> None:
    store = MemoryRowStore()
    publish(store, Repo().compiled())
    stranger = Plan(5, 4, (replace(Repo().compiled().views[0], fields=()),), ())
    with pytest.raises(PlanError, match="needs a plan that extends version 1"):
        publish(store, stranger)


def test_another_apply_in_between_is_noticed() -> None:
    class Busy(MemoryRowStore):
        def compare_and_set_text(self, *arguments: object) -> bool:
            return False

    with pytest.raises(PlanError, match="another apply at the same time"):
        publish(Busy(), Plan(1, 0, (), ()))


def test_planning_writes_nothing_and_applying_does_what_was_planned(repo: Path) -> None:
    store = MemoryRowStore()
    first = plan_repo(repo, store)
    assert [each.name for each in repo.iterdir() if each.name == LOCK_NAME] == []
    assert published(store) is None
    assert apply(repo, store).difference == first.difference
    add_window(repo)
    before = (repo / LOCK_NAME).read_bytes()
    planned = plan_repo(repo, store)
    assert (repo / LOCK_NAME).read_bytes() == before
    assert planned.parent == published(store) == first.plan
    result = apply(repo, store)
    assert result.difference == planned.difference
    assert result.plan == planned.plan


def test_a_review_prevents_an_apply(repo: Path) -> None:
    def no(found: Difference) -> None:
        raise PlanError("review", required="less", got=found.features[0].name)

    store = MemoryRowStore()
    with pytest.raises(PlanError, match="review: needs less, got user_activity"):
        apply(repo, store, no)
    assert not (repo / LOCK_NAME).exists()
    assert published(store) is None


def test_the_difference_is_to_what_the_store_serves(repo: Path) -> None:
    """A plan that was applied without a store is part of what publishing it changes."""
    store = MemoryRowStore()
    apply(repo, store)
    add_window(repo)
    apply(repo)
    found = apply(repo, store)
    assert not found.changed
    assert found.published
    assert [each.name for each in found.difference.features] == ["user_activity.likes_1d"]


def test_rule_8_who_is_told_keeps_registry_and_lock_as_they_were(repo: Path) -> None:
    """Another line was published meanwhile: seen before, or just while publishing."""
    store = MemoryRowStore()
    first = apply(repo, store)
    held = [path.read_bytes() for path in (first.lock, first.registry)]
    rival = replace(first.plan, version=2, parent=1, views=first.plan.views[:1], services=())

    class Late(MemoryRowStore):
        def compare_and_set_text(
            self, key: str, version_key: str, expected_version: int, text: str
        ) -> bool:
            store.compare_and_set_text(key, version_key, expected_version, dump_plan(rival))
            return store.compare_and_set_text(key, version_key, expected_version, text)

    late = Late()
    for key in (PLAN_KEY, PLAN_VERSION_KEY):
        late.put_text(key, store.get_text(key) or "")
    add_window(repo)
    with pytest.raises(PlanError, match="got another apply at the same time"):
        apply(repo, late)
    assert [path.read_bytes() for path in (first.lock, first.registry)] == held
    with pytest.raises(PlanError, match="needs a plan older than version 2, got version 2"):
        apply(repo, store)
    assert [path.read_bytes() for path in (first.lock, first.registry)] == held
    assert published(store) == rival


def test_a_store_with_another_text_is_refused() -> None:
    store = MemoryRowStore()
    store.put_text(PLAN_KEY, "{}")
    with pytest.raises(PlanError):
        publish(store, Plan(1, 0, (), ()))
