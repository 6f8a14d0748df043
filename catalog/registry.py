"""Feast's file registry: read without running what it stores, compared, published by rename.

Feast unpickles and runs user-defined functions when it reads a registry that holds some. Ours never
does: a registry with code is refused before Feast sees it, and objects are made with
`skip_udf=True`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from feast import Entity, FeatureService, FeatureView
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.repo_config import RepoConfig

from catalog.compiler import Definitions
from catalog.declare import StreamedFeatureView
from schemas.errors import DeclarationError, PlanError


def registry_path(config: RepoConfig, repo: Path) -> Path:
    """The local file of the repo's registry. Raises DeclarationError for any other kind."""
    path = str(config.registry.path)
    if "://" in path or config.registry.registry_type != "file":
        raise DeclarationError(
            "feature_store.yaml.registry",
            required="a local file",
            got=f"{config.registry.registry_type} {path}",
            do="set registry: .encore/registry.db; the store shares the plan, not the registry",
        )
    return repo / path


def read_registry(path: Path) -> RegistryProto | None:
    """The registry's message, None where there is no file. Raises PlanError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        registry: RegistryProto = RegistryProto.FromString(data)
    except Exception:  # protobuf's DecodeError; Feast does not pass it on
        raise PlanError(
            str(path),
            required="a Feast registry",
            got=f"{len(data)} other bytes",
            do="remove the file and run `encore apply`",
        ) from None
    refuse_code(registry, str(path))
    return registry


def refuse_code(registry: RegistryProto, where: str) -> None:
    """Raises PlanError where reading the registry with Feast would run stored code."""
    with_code = [view.spec.name for view in registry.on_demand_feature_views]
    with_code += [
        view.spec.name
        for view in (*registry.feature_views, *registry.stream_feature_views)
        if view.spec.HasField("feature_transformation")
    ]
    with_code += [
        view.spec.name
        for view in registry.stream_feature_views
        if view.spec.HasField("user_defined_function")
    ]
    with_code += [each.name for each in registry.validation_references]
    if with_code:
        raise PlanError(
            where,
            required="a registry without user-defined functions",
            got=", ".join(sorted(set(with_code))),
            do="remove the file and run `encore apply`",
        )


def registered(registry: RegistryProto, project: str) -> Definitions:
    """What a registry holds of one project."""

    def of(messages: Any) -> list[Any]:
        return [message for message in messages if message.spec.project == project]

    return Definitions(
        entities=tuple(
            Entity.from_proto(message)
            for message in of(registry.entities)
            if message.spec.name != DUMMY_ENTITY_NAME
        ),
        views=(
            *(FeatureView.from_proto(each, skip_udf=True) for each in of(registry.feature_views)),
            *(
                StreamedFeatureView.from_proto(each, skip_udf=True)
                for each in of(registry.stream_feature_views)
            ),
        ),
        services=tuple(
            FeatureService.from_proto(message) for message in of(registry.feature_services)
        ),
    )


def same_content(first: RegistryProto, second: RegistryProto) -> bool:
    """Whether two registries declare the same: times, order and Feast's version numbers aside."""
    return _content(first) == _content(second)


#: Fields that Feast writes anew on every apply, wherever they are nested.
_REWRITTEN: Final = (
    "created_timestamp",
    "last_updated_timestamp",
    "last_updated",
    "current_version_number",
    "version_id",
    "feature_view_version_history",
    "data_source_class_type",  # set when a view is new, lost when it is applied again
)


def _content(registry: RegistryProto) -> dict[str, list[bytes]]:
    """Each kind of object: its messages' bytes, sorted."""
    held = RegistryProto()
    held.CopyFrom(registry)
    _forget(held)
    return {
        descriptor.name: sorted(each.SerializeToString(deterministic=True) for each in value)
        for descriptor, value in held.ListFields()
        if isinstance(value, Sequence) and descriptor.message_type is not None
    }


def _forget(message: Any) -> None:
    """Clears what is rewritten, in the message and all within it."""
    for name in _REWRITTEN:
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for descriptor, value in message.ListFields():
        kind = descriptor.message_type
        if kind is None or kind.GetOptions().map_entry:
            continue
        for each in value if isinstance(value, Sequence) else (value,):
            _forget(each)
