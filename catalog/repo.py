"""A feature repo's modules → what they declare.

Feast's own loader changes the process's directory and keeps the modules; this one leaves the
process as it was, so that a repo can be loaded again after an edit, and two repos beside each
other. Not safe beside other imports in other threads.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY
from feast.labeling.label_view import LabelView
from feast.permissions.permission import Permission
from feast.project import Project
from feast.repo_contents import RepoContents
from feast.repo_operations import get_repo_files
from feast.stream_feature_view import StreamFeatureView

from catalog.compiler import Definitions
from catalog.declare import StreamedFeatureView
from schemas.errors import DeclarationError, EncoreError

CONFIG_NAME: Final = "feature_store.yaml"


def load_repo(repo: Path, project: str) -> RepoContents:
    """Imports every module of the repo and collects its globals. Raises DeclarationError."""
    files = [path for path in get_repo_files(repo) if repo.resolve() in path.parents]
    if not files:
        raise DeclarationError(str(repo), required="at least one .py file", got="none")
    contents = _empty(project)
    seen: set[int] = set()
    with _imports_from(repo.resolve()):
        for path in files:
            module = _import(path, repo.resolve())
            for name in dir(module):
                declared = getattr(module, name)
                if id(declared) not in seen:
                    seen.add(id(declared))
                    _collect(contents, declared, f"{path.name}.{name}")
    contents.entities.append(DUMMY_ENTITY)
    return contents


def definitions_of(contents: RepoContents) -> Definitions:
    """What the compiler takes."""
    return Definitions(
        entities=tuple(entity for entity in contents.entities if entity is not DUMMY_ENTITY),
        views=(*contents.feature_views, *contents.stream_feature_views),
        services=tuple(contents.feature_services),
    )


def _empty(project: str) -> RepoContents:
    return RepoContents(
        projects=[Project(name=project)],
        data_sources=[],
        feature_views=[],
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        entities=[],
        feature_services=[],
        permissions=[],
    )


def _collect(contents: RepoContents, declared: object, where: str) -> None:
    match declared:
        case OnDemandFeatureView() | LabelView():
            raise DeclarationError(
                where,
                required="a view that runs no code of the registry",
                got=type(declared).__name__,
                do="write the value into a Parquet source, or declare a window over actions",
            )
        case StreamFeatureView() if not isinstance(declared, StreamedFeatureView):
            raise DeclarationError(
                where,
                required="a stream feature view that is stable in the registry",
                got=type(declared).__name__,
                do="declare it with streamed_view(…)",
            )
        case StreamFeatureView():
            contents.stream_feature_views.append(declared)
            _add_sources(contents, declared.stream_source, declared.batch_source)
        case FeatureView():
            contents.feature_views.append(declared)
            _add_sources(contents, declared.batch_source, declared.stream_source)
        case Entity():
            contents.entities.append(declared)
        case FeatureService():
            contents.feature_services.append(declared)
        case DataSource():
            _add_sources(contents, declared, getattr(declared, "batch_source", None))
        case Permission():
            contents.permissions.append(declared)
        case Project():
            contents.projects[:] = [declared]


def _add_sources(contents: RepoContents, *sources: DataSource | None) -> None:
    for source in sources:
        if source is not None and not any(source is known for known in contents.data_sources):
            contents.data_sources.append(source)


def _import(path: Path, repo: Path) -> ModuleType:
    name = ".".join(path.relative_to(repo).with_suffix("").parts)
    try:
        return importlib.import_module(name)
    except EncoreError:
        raise
    except SyntaxError as error:
        source = Path(error.filename or path).name
        raise DeclarationError(
            f"{source}:{error.lineno}" if error.lineno else source,
            required="a module that imports",
            got=f"{type(error).__name__}: {error.msg}",
        ) from error
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename]
        mine = [frame for frame in frames if Path(frame.filename).is_relative_to(repo)]
        line = f":{mine[-1].lineno}" if mine else ""
        source = Path(mine[-1].filename).name if mine else path.name
        raise DeclarationError(
            f"{source}{line}",
            required="a module that imports",
            got=f"{type(error).__name__}: {' '.join(str(error).split())}",
        ) from error


@contextmanager
def _imports_from(repo: Path) -> Iterator[None]:
    """The repo first on the path; afterwards path and modules as before, no bytecode left."""
    names = {
        ".".join(path.relative_to(repo).with_suffix("").parts) for path in repo.glob("**/*.py")
    }
    shadowed = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    before, wrote = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(repo))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        sys.dont_write_bytecode = wrote
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(shadowed)
