"""The compiled descriptors are the `.proto` files', and the protocol's own.

`python -m tests.predictor.test_grpc_messages` compiles them again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.service_pb2 as triton
from google.protobuf import descriptor_pb2

import predictor.grpc_messages as messages

PROTO = Path(__file__).parents[2] / "predictor" / "proto"


def compile_protos(target: Path) -> None:
    sources = sorted(path.name for path in PROTO.glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={target}"]
    subprocess.run([*command, *sources], cwd=PROTO, check=True)


def test_the_descriptors_are_compiled_from_the_files(tmp_path: Path) -> None:
    compile_protos(tmp_path / "now.pb")
    parse = descriptor_pb2.FileDescriptorSet.FromString
    wanted = parse((tmp_path / "now.pb").read_bytes())
    held = parse((PROTO / "descriptors.pb").read_bytes())
    assert held == wanted, "python -m tests.predictor.test_grpc_messages"


def fields(descriptor: Any) -> dict[str, Any]:
    """Name → number, type and whether repeated, of a message and the messages within it."""
    own = {
        each.name: (each.number, each.type, each.is_repeated, each.containing_oneof is not None)
        for each in descriptor.fields
    }
    nested = {each.name: fields(each) for each in descriptor.nested_types}
    return own | nested


ANOTHERS = triton.DESCRIPTOR.message_types_by_name
OURS = messages._POOL.FindFileByName("open_inference.proto")


@pytest.mark.parametrize("name", sorted(OURS.message_types_by_name))
def test_names_and_numbers_are_the_protocols(name: str) -> None:
    """Held against another client's compiled messages of the same protocol."""
    ours = fields(OURS.message_types_by_name[name])
    if name == "ModelMetadataResponse":  # KServe's protocol has it, Triton's messages do not
        assert ours.pop("properties")[0] == 6
        ours.pop("PropertiesEntry")
    assert ours == fields(ANOTHERS[name])


def test_the_service_is_the_protocols() -> None:
    [service] = OURS.services_by_name.values()
    another = triton.DESCRIPTOR.services_by_name[service.name]
    assert service.full_name == another.full_name == messages.SERVICE
    for method in service.methods:
        other = another.methods_by_name[method.name]
        assert method.input_type.full_name == other.input_type.full_name
        assert method.output_type.full_name == other.output_type.full_name


if __name__ == "__main__":
    compile_protos(PROTO / "descriptors.pb")
