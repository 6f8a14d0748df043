"""Feast's stream feature view, made stable: what a streamed view is in the registry."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from feast.protos.feast.core.StreamFeatureView_pb2 import (
    StreamFeatureView as StreamFeatureViewProto,
)
from feast.stream_feature_view import StreamFeatureView


@contextmanager
def quiet_feast() -> Iterator[None]:
    """Silences Feast's notice that stream feature views are experimental."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Stream feature views are experimental", RuntimeWarning)
        yield


class StreamedFeatureView(StreamFeatureView):
    """A StreamFeatureView that equals itself after a round trip through the registry.

    Feast 0.67 writes the fields in set order and adds the join key to them, so that each no-op
    apply made a version. This one writes its features in their order and nothing else.
    """

    def __init__(self, **declared: Any) -> None:
        with quiet_feast():
            super().__init__(**declared)

    def to_proto(self) -> StreamFeatureViewProto:
        """The registry's form: features in declared order."""
        proto = cast(StreamFeatureViewProto, super().to_proto())  # type: ignore[no-untyped-call]
        del proto.spec.features[:]
        proto.spec.features.extend(field.to_proto() for field in self.features)
        return proto

    def __copy__(self) -> StreamedFeatureView:
        held = StreamedFeatureView.__new__(StreamedFeatureView)
        held.__dict__.update(self.__dict__)
        held.features = copy.copy(self.features)
        held.entity_columns = copy.copy(self.entity_columns)
        held.projection = copy.copy(self.projection)
        return held

    def __eq__(self, other: object) -> bool:
        return bool(super().__eq__(other))  # type: ignore[no-untyped-call]

    def __hash__(self) -> int:
        return super().__hash__()
