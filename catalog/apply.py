"""`encore apply`: a feature repo → Feast's registry → the plan, its lock file, and the store.

1. Load the repo and compile it: whatever is refused is refused before anything is written.
2. Feast's own apply, into a copy of the registry beside the real one.
3. Compile the copy; the registry must say what the repo said.
4. Publish by rename, the registry first, then the lock file: after a crash in between, the lock is
   older than the registry, which the online store refuses and the next apply mends.
5. Given a store: publish the plan there.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from feast import FeatureStore
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.repo_config import RepoConfig, load_repo_config
from feast.repo_contents import RepoContents
from feast.repo_operations import extract_objects_for_apply_delete

from catalog.compiler import compile_plan
from catalog.declare import quiet_feast
from catalog.lock import LOCK_NAME, read_lock, replace_file, write_lock
from catalog.publish import publish
from catalog.registry import read_registry, registered, registry_path, same_content
from catalog.repo import CONFIG_NAME, definitions_of, load_repo
from schemas.errors import DeclarationError, PlanError
from schemas.plan import Plan
from store.base import RowStore


@dataclass(frozen=True)
class ApplyResult:
    """What an apply did.

    plan: as the lock file holds it now. parent: as it held before, None for a first apply. changed:
    whether the lock file was written. registry_changed: whether Feast's registry was. published:
    whether the store took the plan over just now (False without a store, or where it had it).
    """

    plan: Plan
    parent: Plan | None
    changed: bool
    registry_changed: bool
    published: bool
    lock: Path
    registry: Path


def apply(repo: Path, store: RowStore | None = None) -> ApplyResult:
    """Applies a feature repo. Nothing changes where nothing was declared anew.

    Raises DeclarationError for what cannot be compiled, PlanError for a lock file, registry or
    published plan that cannot be built on, StoreError.
    """
    config = load_config(repo)
    path, lock = registry_path(config, repo), repo / LOCK_NAME
    contents = load_repo(repo, config.project)
    with _one_at_a_time(path):
        parent = read_lock(lock)
        plan = compile_plan(definitions_of(contents), parent)
        before = read_registry(path)
        after, data = _feast_apply(repo, config.project, contents, before)
        if compile_plan(registered(after, config.project), parent) != plan:
            raise PlanError(
                str(path),
                required="the registry to hold what the repo declares",
                got="another plan",
                do="remove the file and run `encore apply` again",
            )
        registry_changed = before is None or not same_content(before, after)
        if registry_changed:
            replace_file(path, data)
        changed = write_lock(lock, plan)
    taken = publish(store, plan) if store is not None else False
    return ApplyResult(plan, parent, changed, registry_changed, taken, lock, path)


def load_config(repo: Path) -> RepoConfig:
    """The repo's `feature_store.yaml`. Raises DeclarationError."""
    path = repo / CONFIG_NAME
    try:
        return load_repo_config(repo, path)
    except FileNotFoundError:
        got, do = "no such file", "name the directory that holds feature_store.yaml"
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
        if after is None:
            raise PlanError(str(copy), required="a registry from Feast's apply", got="none")
        return after, copy.read_bytes()


def _config_for(repo: Path, registry: Path) -> RepoConfig:
    """The repo's configuration with another registry and no online store: the plan is its infra."""
    config = load_config(repo)
    config.registry_config = str(registry)
    config.online_config = None
    return config
