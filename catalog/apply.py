"""`encore apply`: a feature repo → Feast's registry → the plan, its lock file, and the store.

1. Load the repo and compile it: whatever is refused is refused before anything is written, what the
   store's plan does not allow and what the caller's review does not allow included.
2. Feast's own apply, into a copy of the registry beside the real one.
3. Compile the copy; the registry must say what the repo said.
4. Publish by rename, the registry first, then the lock file: after a crash in between, the lock is
   older than the registry, which the online store refuses and the next apply mends.
5. Given a store: publish the plan there. Where another apply was faster, registry and lock file are
   put back as they were.

`plan_repo` is step 1 alone.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from feast import FeatureStore
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.repo_config import RepoConfig, load_repo_config
from feast.repo_contents import RepoContents
from feast.repo_operations import extract_objects_for_apply_delete

from catalog.compiler import Definitions, compile_plan
from catalog.difference import Difference, difference
from catalog.lock import LOCK_NAME, read_lock, replace_file, write_lock
from catalog.publish import (
    check_follows,
    check_may_publish,
    extends,
    publish,
    published,
    staged,
)
from catalog.registry import read_registry, registered, registry_path, same_content
from catalog.repo import CONFIG_NAME, definitions_of, load_repo
from catalog.stream_view import quiet_feast
from schemas.errors import DeclarationError, PlanError
from schemas.plan import Plan
from schemas.staged import Staged
from store.base import RowStore


@dataclass(frozen=True)
class ApplyResult:
    """What an apply did.

    plan: as the lock file holds it now. parent: as it held before, None for a first apply.
    difference: to what the store held, without a store (or in a new one) to the lock file. changed:
    whether the lock file was written. registry_changed: whether Feast's registry was. published:
    whether the store took the plan over just now (False without a store, or where it had it).
    """

    plan: Plan
    parent: Plan | None
    difference: Difference
    changed: bool
    registry_changed: bool
    published: bool
    lock: Path
    registry: Path


@dataclass(frozen=True)
class Proposal:
    """What an apply would make of a repo. parent: the plan that it builds on."""

    plan: Plan
    parent: Plan | None
    difference: Difference


#: Looks at a difference before it is applied; what it raises prevents the apply.
Review = Callable[[Difference], None]


def plan_repo(repo: Path, store: RowStore | None = None, take_over: bool = False) -> Proposal:
    """What `apply` would do; nothing is written. Raises as `apply` does."""
    contents = load_repo(repo, load_config(repo).project)
    return _propose(definitions_of(contents), read_lock(repo / LOCK_NAME), store, take_over)


def apply(
    repo: Path,
    store: RowStore | None = None,
    review: Review | None = None,
    switching: bool = False,
    take_over: bool = False,
) -> ApplyResult:
    """Applies a feature repo. Nothing changes where nothing was declared anew.

    take_over: build on the plan that the store holds, not on the lock file. switching: what is
    published is a staged plan whose rows are all there (`catalog.staging`). Raises
    DeclarationError for what cannot be compiled, PlanError for a lock file, registry or published
    plan that cannot be built on, or while a plan is staged, StoreError, and what `review` raises.
    """
    config = load_config(repo)
    path, lock = registry_path(config, repo), repo / LOCK_NAME
    contents = load_repo(repo, config.project)
    with _one_at_a_time(path):
        parent = read_lock(lock)
        proposal = _propose(definitions_of(contents), parent, store, take_over)
        plan = proposal.plan
        if store is not None and plan != published(store):
            check_may_publish(staged(store), plan, switching)
        if review is not None:
            review(proposal.difference)
        before = read_registry(path)
        after, data = _feast_apply(repo, config.project, contents, before)
        least = {view.name: view.generation for view in plan.views}
        if compile_plan(registered(after, config.project), proposal.parent, least) != plan:
            raise PlanError(
                str(path),
                required="the registry to hold what the repo declares",
                got="another plan",
                do="remove the file and run `encore apply` again",
            )
        registry_changed = before is None or not same_content(before, after)
        with _put_back_if_refused(path, lock):
            if registry_changed:
                replace_file(path, data)
            changed = write_lock(lock, plan)
            taken = publish(store, plan, switching) if store is not None else False
    found = proposal.difference
    return ApplyResult(plan, parent, found, changed, registry_changed, taken, lock, path)


def _propose(
    definitions: Definitions, lock: Plan | None, store: RowStore | None, take_over: bool
) -> Proposal:
    held = published(store) if store is not None else None
    now = staged(store) if store is not None else Staged()
    parent = lock
    if held is not None and (take_over or lags(lock, held, definitions)):
        parent = held
    if now.active:
        plan = compile_plan(definitions, parent, least=now.views)
    else:
        plan = compile_plan(definitions, parent, used=now.used)
    if held is not None and held != plan:
        check_follows(held, plan)
    return Proposal(plan, parent, difference(held if held is not None else lock, plan))


def lags(lock: Plan | None, held: Plan, definitions: Definitions) -> bool:
    """The lock file is of an older plan of the store's line, which serves what the repo declares: a
    backfill on another machine published it."""
    if lock is None or lock.version >= held.version:
        return False
    before = {view.name: view for view in lock.views}
    same_line = all(extends(view, before[view.name]) for view in held.views if view.name in before)
    return same_line and compile_plan(definitions, held) == held


@contextmanager
def _put_back_if_refused(*files: Path) -> Iterator[None]:
    """Where publishing is refused, the files are put back as they were."""
    held = {file: file.read_bytes() if file.exists() else None for file in files}
    try:
        yield
    except PlanError:
        for file, data in held.items():
            if data is None:
                file.unlink(missing_ok=True)
            elif data != file.read_bytes():
                replace_file(file, data)
        raise


def load_config(repo: Path) -> RepoConfig:
    """The repo's `feature_store.yaml`. Raises DeclarationError."""
    path = repo / CONFIG_NAME
    try:
        return load_repo_config(repo, path)
    except FileNotFoundError:
        got, do = (
            "no such file",
            "set repo to the directory that has it; `encore init DIR` makes a new project",
        )
    except Exception as error:  # of Feast, pydantic or the YAML parser: all say what is wrong
        got, do = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}", ""
    raise DeclarationError(str(path), required="a Feast configuration", got=got, do=do)


@contextmanager
def _one_at_a_time(registry: Path) -> Iterator[None]:
    """Holds the repo's apply lock; a second apply waits."""
    registry.parent.mkdir(parents=True, exist_ok=True)
    with (registry.parent / "apply.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _feast_apply(
    repo: Path, project: str, contents: RepoContents, before: RegistryProto | None
) -> tuple[RegistryProto, bytes]:
    """Feast's apply into a copy of the registry. Returns the copy, as message and as bytes."""
    with tempfile.TemporaryDirectory(prefix="encore-apply-") as directory:
        copy = Path(directory) / "registry.db"
        if before is not None:
            copy.write_bytes(before.SerializeToString())
        with quiet_feast():
            store = FeatureStore(config=_config_for(repo, copy))
            to_apply, to_delete, _, _ = extract_objects_for_apply_delete(  # type: ignore[no-untyped-call]
                project, store.registry, contents
            )
            store.apply(to_apply, objects_to_delete=to_delete, partial=False)
        after = read_registry(copy)
        assert after is not None  # Feast's apply writes it
        return after, copy.read_bytes()


def _config_for(repo: Path, registry: Path) -> RepoConfig:
    """The repo's configuration with another registry and no online store: the plan is its infra."""
    config = load_config(repo)
    config.registry_config = str(registry)
    config.online_config = None
    return config
