"""Requests as tensors in a safetensors file: a package's warm-up and golden requests.

Request i of a file is the tensors `<i>.user_slots` (1, Su), `<i>.item_slots` (N, Si),
`<i>.sequence.<p>` (1, L) and `<i>.length.<p>` (1,), and in a golden file `<i>.scores`: the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from predictor.networks import Inputs
from predictor.spec import InputSpec
from schemas.errors import PackageError

MAX_REQUESTS = 64


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file."""
    packed: bytes = safetensors.torch.save(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    )
    return packed


def unpack_tensors(blob: bytes, where: str) -> dict[str, torch.Tensor]:
    """The inverse. Raises PackageError for bytes that are no safetensors file."""
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(blob)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise PackageError(where, required="a safetensors file", got=str(error)) from None
    return tensors


def pack_requests(requests: Sequence[Inputs], scores: Sequence[torch.Tensor] = ()) -> bytes:
    """Requests, and the logits of each where they are given, as a safetensors file."""
    named: dict[str, torch.Tensor] = {}
    for place, request in enumerate(requests):
        named |= {f"{place}.{name}": tensor for name, tensor in _parts(request)}
    named |= {f"{place}.scores": score for place, score in enumerate(scores)}
    return pack_tensors(named)


def unpack_requests(
    blob: bytes, spec: InputSpec, where: str
) -> list[tuple[Inputs, NDArray[np.float32] | None]]:
    """The inverse; scores are None where a request has none. Raises PackageError.

    Every id is within its table and every shape as the spec says.
    """
    tensors = unpack_tensors(blob, where)
    out: list[tuple[Inputs, NDArray[np.float32] | None]] = []
    places = range(len(spec.sequences))
    while f"{len(out)}.user_slots" in tensors and len(out) < MAX_REQUESTS:
        at = f"{len(out)}."
        try:
            request = Inputs(
                tensors.pop(f"{at}user_slots"),
                tensors.pop(f"{at}item_slots"),
                tuple(tensors.pop(f"{at}sequence.{place}") for place in places),
                tuple(tensors.pop(f"{at}length.{place}") for place in places),
            )
        except KeyError as error:
            raise PackageError(where, required=f"a tensor {error}", got="none") from None
        scores = tensors.pop(f"{at}scores", None)
        check_request(request, spec, f"{where}[{len(out)}]")
        out.append((request, None if scores is None else scores.numpy()))
    if not out or tensors:
        got = f"{len(out)}, and {', '.join(sorted(tensors)[:3]) or 'nothing'} beside them"
        raise PackageError(where, required=f"1 to {MAX_REQUESTS} requests", got=got)
    return out


def check_request(request: Inputs, spec: InputSpec, where: str) -> None:
    """Raises PackageError where a one-user request's shapes, dtypes or ids do not fit the spec."""
    sizes = [size for _, size in spec.tables]
    limits = {
        "user_slots": [sizes[table] for table in spec.user_slots],
        "item_slots": [sizes[table] for table in spec.item_slots],
    }
    for place, sequence in enumerate(spec.sequences):
        limits[f"sequence.{place}"] = [sizes[sequence.table]] * sequence.capacity
        limits[f"length.{place}"] = [sequence.capacity + 1]
    for name, ids in _parts(request):
        limit = limits.get(name, [])
        shape = (len(ids) if name == "item_slots" and ids.ndim else 1, len(limit))
        fits = ids.dtype in (torch.int32, torch.int64) and (
            tuple(ids.shape) == shape or (name.startswith("length") and tuple(ids.shape) == (1,))
        )
        if not fits or bool(((ids < 0) | (ids >= torch.tensor(limit))).any()):
            raise PackageError(
                f"{where}.{name}",
                required=f"integer ids within their tables, shape {shape}",
                got=f"{ids.dtype} of shape {tuple(ids.shape)}{', ids outside' if fits else ''}",
            )


def _parts(request: Inputs) -> Iterator[tuple[str, torch.Tensor]]:
    yield "user_slots", request.user_slots
    yield "item_slots", request.item_slots
    for place, (ids, lengths) in enumerate(zip(request.sequences, request.lengths, strict=True)):
        yield f"sequence.{place}", ids
        yield f"length.{place}", lengths
