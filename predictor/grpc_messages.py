"""The protocol's messages over gRPC, made at run time from `predictor/proto/descriptors.pb`.

That file is what protoc makes of the `.proto` files beside it (a test holds the two together;
`python -m tests.predictor.test_grpc_messages` writes it again). The classes live in a pool of
their own, so that a process may also load another client's classes of the same names.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DESCRIPTORS: Final = "proto/descriptors.pb"
INFERENCE_PROTO: Final = "proto/open_inference.proto"
SERVICE: Final = "inference.GRPCInferenceService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
ERROR_INFO_URL: Final = "type.googleapis.com/google.rpc.ErrorInfo"
#: The trailer that carries a `google.rpc.Status`.
STATUS_TRAILER: Final = "grpc-status-details-bin"


def inference_proto() -> str:
    """The text of the protocol file, for other languages."""
    return (files("predictor") / INFERENCE_PROTO).read_text("utf-8")


def _pool() -> descriptor_pool.DescriptorPool:
    found = descriptor_pb2.FileDescriptorSet.FromString(
        (files("predictor") / DESCRIPTORS).read_bytes()
    )
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    return pool


_POOL: Final = _pool()


def message(name: str) -> Any:
    """The class of a message by its full name. Raises KeyError for one that is not there."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


ServerLiveRequest: Final = message("inference.ServerLiveRequest")
ServerLiveResponse: Final = message("inference.ServerLiveResponse")
ServerReadyRequest: Final = message("inference.ServerReadyRequest")
ServerReadyResponse: Final = message("inference.ServerReadyResponse")
ModelReadyRequest: Final = message("inference.ModelReadyRequest")
ModelReadyResponse: Final = message("inference.ModelReadyResponse")
ServerMetadataRequest: Final = message("inference.ServerMetadataRequest")
ServerMetadataResponse: Final = message("inference.ServerMetadataResponse")
ModelMetadataRequest: Final = message("inference.ModelMetadataRequest")
ModelMetadataResponse: Final = message("inference.ModelMetadataResponse")
ModelInferRequest: Final = message("inference.ModelInferRequest")
ModelInferResponse: Final = message("inference.ModelInferResponse")
RpcStatus: Final = message("google.rpc.Status")
ErrorInfo: Final = message("google.rpc.ErrorInfo")
HealthCheckRequest: Final = message("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse: Final = message("grpc.health.v1.HealthCheckResponse")
