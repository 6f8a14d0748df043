"""The networks as they serve where the kernels were built: one call a model, without the
interpreter's lock (`aggregation/native/networks.c`).

The tables and weights are those of `predictor.folding`, and logits agree with the networks' within
`SCORE_TOLERANCE`; equal inputs give equal bits on one machine.

    N  candidates    S  slots of a side    P  sequences    L  capacity of one    T  tasks
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from aggregation.native.library import Kernels, address, address_of_new, plain
from aggregation.tensors import Ids, Tensors
from predictor.folding import MOST_BYTES
from predictor.native_layouts import ALIGNED, Packed
from predictor.networks import FineNet, Inputs, Network, TargetAttention, TwoTower

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

_I32: Final = np.dtype(np.int32)
_MOST: Final = int(np.iinfo(np.int32).max)
_USER_SLOTS, _ITEM_SLOTS, _ROWS, _SEQUENCES = 1, 2, 3, 4  # as networks.h has them


def native_scorer(
    network: Network, library: Kernels | None, most_bytes: int = MOST_BYTES
) -> NativeScorer | None:
    """What scores one user's requests as `network` does; None without kernels, or for a network of
    which they do not know a part. The other arguments are those of `predictor.folded.folded`."""
    if library is None or not _known(network):
        return None
    with torch.inference_mode():
        return NativeScorer(network, library, most_bytes)


def _known(network: Network) -> bool:
    """Whether it is made of what the kernels compute."""
    for each in network.parameters():
        if each.dtype != torch.float32 or each.device.type != "cpu":
            return False
    if not network.embeddings.weight.is_contiguous():
        return False
    if isinstance(network, FineNet):
        return all(type(each) is TargetAttention for each in network.attention)
    known = (nn.Linear, nn.ReLU, nn.Dropout)
    layers = [*enumerate(network.user_mlp), *enumerate(network.item_mlp)]
    return all(type(layer) is known[place % len(known)] for place, layer in layers)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request's ids. user (1, Su), items (N, Si), sequences P × (1, L), lengths P × (1,); rows:
    of the items that are asked for, None for all."""

    user: Ids
    items: Ids
    sequences: list[Ids]
    lengths: list[Ids]
    rows: I64 | None = None


class NativeScorer:
    """One network, packed. Several threads may call it: each call has a scratch buffer."""

    def __init__(
        self,
        network: Network,
        library: Kernels,
        most_bytes: int = MOST_BYTES,
        lanes: int | None = None,
    ) -> None:
        """lanes: candidates computed at once; as the machine's vectors are wide unless given."""
        free, spec = library.free, network.spec.inputs
        self._packed = Packed(network, lanes or free.network_lanes(), most_bytes)
        self._at = self._packed.at
        if isinstance(network, TwoTower):
            self._scores, scratch = free.tower_scores, free.tower_scratch
            self._outputs: tuple[int, ...] = ()
        else:
            self._scores, scratch = free.fine_scores, free.fine_scratch
            self._outputs = (len(network.spec.tasks),)
        self._scratch_bytes = int(scratch(self._at)) + ALIGNED
        self._unused: list[tuple[int, NDArray[np.uint8]]] = []
        self._names = [each.name for each in spec.sequences]
        self._slots = len(spec.user_slots), len(spec.item_slots)
        self._pack = struct.Struct(f"={6 + 3 * len(spec.sequences)}q").pack

    def __call__(self, inputs: Inputs) -> Tensor:
        """(N,) of a two-tower, (N, T) of a fine network.

        Raises IndexError for an id outside of its table and for a length outside of its sequence,
        ValueError for tensors of other shapes.
        """
        user, items = _narrow(inputs.user_slots), _narrow(inputs.item_slots)
        sequences = [_narrow(each) for each in inputs.sequences]
        lengths = [_narrow(each) for each in inputs.lengths]
        return torch.from_numpy(self._logits(_Asked(user, items, sequences, lengths)))

    def of_tensors(self, tensors: Tensors, rows: I64 | None = None) -> F32:
        """The same of a request's tensors; `rows` chooses candidates."""
        user, items = _whole(tensors.user_slots), _whole(tensors.item_slots)
        sequences = [_whole(tensors.sequences[name]) for name in self._names]
        lengths = [_whole(tensors.lengths[name]) for name in self._names]
        return self._logits(_Asked(user, items, sequences, lengths, rows))

    def _logits(self, asked: _Asked) -> F32:
        self._check(asked)
        held = len(asked.items)
        rows = None if asked.rows is None else plain(asked.rows, np.int64)
        n = held if rows is None else len(rows)
        words = [
            *(_address(asked.user), _address(asked.items)),
            0 if rows is None else _address(rows),
            *(self._slots[1], held, n),
        ]
        for ids, length in zip(asked.sequences, asked.lengths, strict=True):
            words += (_address(ids), _address(length), ids.size)
        out = np.empty((n, *self._outputs), np.float32)  # (N,) or (N, T)
        scratch = self._scratch()
        refused = self._scores(self._at, self._pack(*words), scratch[0], _address(out))
        self._unused.append(scratch)
        if refused:
            raise IndexError(self._outside(refused, asked))
        return out

    def _scratch(self) -> tuple[int, NDArray[np.uint8]]:
        """An aligned address that nobody else computes in, and the buffer that it is of."""
        try:
            return self._unused.pop()
        except IndexError:
            held = np.empty(self._scratch_bytes, np.uint8)
            start = address(held)
            return start + -start % ALIGNED, held

    def _check(self, asked: _Asked) -> None:
        """The kernel has no other bounds than these and the tables'."""
        users, items = self._slots
        several = len(self._names)
        if asked.user.shape != (1, users) or asked.items.shape[1:] != (items,):
            required = f"slots of one user (1, {users}) and candidates (N, {items})"
            raise ValueError(f"{required}, got {asked.user.shape} and {asked.items.shape}")
        if len(asked.sequences) != several or len(asked.lengths) != several:
            raise ValueError(f"needs {several} sequences, got {len(asked.sequences)}")
        for ids, length in zip(asked.sequences, asked.lengths, strict=True):
            if ids.ndim != 2 or len(ids) != 1 or length.shape != (1,):
                raise ValueError(f"needs sequences of one user, got {ids.shape}, {length.shape}")

    def _outside(self, refused: int, asked: _Asked) -> str:
        """What the kernel says does not fit, and where."""
        packed = self._packed
        if refused == _USER_SLOTS:
            return _first_outside("user_slots", asked.user, packed.user_counts)
        if refused == _ITEM_SLOTS:
            items = asked.items if asked.rows is None else asked.items[asked.rows]
            return _first_outside("item_slots", items[:, : len(packed.item_counts)],
                                  packed.item_counts)  # fmt: skip
        if refused == _ROWS:
            return f"rows: needs some of {len(asked.items)} candidates, got another"
        place = refused - _SEQUENCES
        ids, length = asked.sequences[place], int(asked.lengths[packed.leaders[place]][0])
        if not 0 <= length <= min(ids.size, packed.longest):
            return f"lengths[{place}]: needs 0 to {ids.size}, got {length}"
        return _first_outside(f"sequences[{place}]", ids[:, :length], packed.sequence_counts[place])


def _first_outside(name: str, ids: Ids, counts: ArrayLike) -> str:
    """counts: of each column's rows."""
    limits = np.broadcast_to(counts, ids.shape)
    row, column = (int(each[0]) for each in np.nonzero((ids < 0) | (ids >= limits)))
    most, got = limits[row, column] - 1, ids[row, column]
    return f"{name}[{row}, {column}]: needs an id from 0 to {most}, got {got}"


def _whole(ids: Ids) -> Ids:
    """The same in one piece, aligned."""
    return plain(ids, _I32)


def _narrow(ids: Tensor) -> Ids:
    """The same as int32; what does not fit becomes an id of no table."""
    array = ids.numpy()
    return _whole(array if array.dtype == _I32 else np.clip(array, -1, _MOST))


def _address(array: NDArray[Any]) -> int:
    """Of an array in one piece, which may be read-only."""
    try:
        return address_of_new(array)
    except TypeError:
        return address(array)
