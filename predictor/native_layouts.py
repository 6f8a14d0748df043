"""The networks as the kernels read them: structures of aggregation/native/networks.h, field by
field, and the blocks of float32 that they point to.

    E  embedding width    O  outputs    I  inputs    H  hidden    A  attention width
    D  tower dimension    T  tasks      X  shared experts         W  expert width
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregation.native.library import address
from predictor.folding import FirstLayer, attentions, first_layers, linear
from predictor.networks import FineNet, Network, TargetAttention, TwoTower
from predictor.spec import Attended, InputSpec

WIDTH, TILE, ALIGNED = 16, 8, 64  # as networks.h has them

_I64, _AT = ctypes.c_int64, ctypes.c_void_p


class Column(ctypes.Structure):
    """A slot's place among the ids, and its rows."""

    _fields_ = (("place", _I64), ("rows", _AT))


class Side(ctypes.Structure):
    """The first layer over one side's slots."""

    _fields_ = (
        *((name, _AT) for name in ("counts", "folded", "plain")),
        *((name, _I64) for name in ("slots", "n_folded", "n_plain", "outputs", "width")),
        *(("weight", _AT), ("bias", _AT)),
    )


class Entries(ctypes.Structure):
    """A sequence's table, and the sequence whose length it has."""

    _fields_ = (("rows", _AT), ("count", _I64), ("leader", _I64))


class Layer(ctypes.Structure):
    """A layer behind the first."""

    _fields_ = (
        *(("weight", _AT), ("bias", _AT)),
        *(("inputs", _I64), ("outputs", _I64), ("rectified", _I64)),
    )


class Attention(ctypes.Structure):
    """What a candidate attends."""

    _fields_ = (
        *(("places", _AT), ("queries", _AT)),
        *(("n_places", _I64), ("n_queries", _I64), ("width", _I64)),
        *((name, _AT) for name in ("query", "product", "key", "key_bias", "score")),
    )


class Base(ctypes.Structure):
    """What both networks have."""

    _fields_ = (
        *((name, _I64) for name in ("lanes", "embedding", "n_sequences", "longest")),
        *(("sequences", _AT), ("users", Side), ("items", Side)),
    )


class Tower(ctypes.Structure):
    """The two-tower network."""

    _fields_ = (
        *(("base", Base), ("user_layers", _AT), ("item_layers", _AT)),
        *((name, _I64) for name in ("n_user_layers", "n_item_layers", "rectified")),
    )


class Fine(ctypes.Structure):
    """The fine network."""

    _fields_ = (
        *(("base", Base), ("attended", _AT)),
        *((name, _I64) for name in ("n_attended", "tasks", "shared", "expert")),
        *(("bottom", Layer), ("mixing", Layer), ("heads", _AT), ("bias", _AT)),
    )


class Request(ctypes.Structure):
    """The fixed part of a request."""

    _fields_ = (
        *((name, _AT) for name in ("user", "items", "rows")),
        *((name, _I64) for name in ("stride", "held", "n")),
    )


class Listed(ctypes.Structure):
    """A user's sequence in a request."""

    _fields_ = (("ids", _AT), ("length", _AT), ("width", _I64))


STRUCTURES: Final = (Column, Side, Entries, Layer, Attention, Tower, Fine, Request, Listed)


class Packed:
    """A network for the kernels. It reads the embeddings in the network's own memory, which must
    not change, and keeps everything else itself. lanes: of `network_lanes`, or fewer."""

    def __init__(self, network: Network, lanes: int, most_bytes: int) -> None:
        self._kept: list[Any] = [network]
        self._spec: InputSpec = network.spec.inputs
        self._table = network.embeddings.weight.detach()  # its memory stays, whatever becomes of it
        self._starts, self._width = network.embeddings.starts, network.spec.embedding
        users, items = first_layers(network, most_bytes)
        spec = self._spec
        self.user_counts, self.item_counts = (
            [n for _, n in each.tables] for each in (users, items)
        )
        self.sequence_counts = [spec.tables[each.table][1] for each in spec.sequences]
        self.leaders = {place: group[0] for group in spec.groups for place in group}
        self.longest = max((each.capacity for each in spec.sequences), default=0)
        base = self._base(users, items, lanes)
        made = (
            self._tower(network, base)
            if isinstance(network, TwoTower)
            else self._fine(network, base, items)
        )
        self._kept.append(made)
        self.at = ctypes.addressof(made)

    # --- blocks ------------------------------------------------------------------------------

    def _floats(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Aligned zeros, kept."""
        size = math.prod(shape) * 4
        held = np.zeros(size + ALIGNED, np.uint8)
        self._kept.append(held)
        start = -address(held) % ALIGNED
        return held[start : start + size].view(np.float32).reshape(shape)

    def _place(self, values: Tensor, *shape: int) -> int:
        """The address of a copy in the first corner of zeros of that shape; its own without one."""
        values = values.detach()
        out = self._floats(shape or tuple(values.shape))
        out[tuple(slice(n) for n in values.shape)] = values.numpy()
        return address(out)

    def _by_inputs(self, weight: Tensor) -> int:
        """(O, I) -> (I, O), outputs filled up."""
        return self._place(weight.T, weight.shape[1], _up(weight.shape[0], WIDTH))

    def _in_tiles(self, weight: Tensor) -> int:
        """(O, I) -> (tiles, I, TILE)."""
        outputs, inputs = weight.shape
        full = weight.new_zeros(_up(outputs, TILE), inputs)
        full[:outputs] = weight
        return self._place(full.view(len(full) // TILE, TILE, inputs).transpose(1, 2))

    def _filled(self, bias: Tensor) -> int:
        return self._place(bias, _up(len(bias), WIDTH))

    def _integers(self, values: Iterable[int], dtype: type[np.integer[Any]]) -> int:
        array = np.array(list(values), dtype)
        self._kept.append(array)
        return address(array)

    def _structures(self, made: Sequence[ctypes.Structure], of: type[ctypes.Structure]) -> int:
        array = (of * len(made))(*made)
        self._kept.append(array)
        return ctypes.addressof(array)

    def _rows(self, start: int) -> int:
        """Where a table begins."""
        return self._table.data_ptr() + start * self._width * 4

    # --- parts -------------------------------------------------------------------------------

    def _side(self, layer: FirstLayer, weight: int) -> Side:
        wide = len(layer.bias) + (2 * self._width if layer.sums else 0)
        width = _up(wide, WIDTH)
        folded = []
        for slot in layer.folded:
            rows = layer.tables[slot][1]
            folded.append(Column(slot, self._place(layer.block(slot), rows, width)))
        plain = [Column(slot, self._rows(layer.tables[slot][0])) for slot in layer.plain]
        return Side(
            self._integers((rows for _, rows in layer.tables), np.int32),
            self._structures(folded, Column),
            self._structures(plain, Column),
            len(layer.tables),
            len(folded),
            len(plain),
            len(layer.bias),
            width,
            weight,
            self._place(layer.bias, width),
        )

    def _base(self, users: FirstLayer, items: FirstLayer, lanes: int) -> Base:
        spec = self._spec
        sequences = [
            Entries(
                self._rows(self._starts[each.table]),
                self.sequence_counts[place],
                self.leaders[place],
            )
            for place, each in enumerate(spec.sequences)
        ]
        nothing = items.rest.new_zeros(len(items.bias), 0)
        own, other = [[side.parts[slot] for slot in side.plain] for side in (users, items)]
        return Base(
            lanes,
            self._width,
            len(sequences),
            self.longest,
            self._structures(sequences, Entries),
            self._side(users, self._by_inputs(torch.cat([*own, users.rest], 1))),
            self._side(items, self._in_tiles(torch.cat([*other, nothing], 1))),
        )

    def _row_layer(self, weight: Tensor, bias: Tensor, rectified: bool) -> Layer:
        """weight: (O, I)."""
        outputs, inputs = weight.shape
        return Layer(self._by_inputs(weight), self._filled(bias), inputs, outputs, rectified)

    def _tile_layer(self, weight: Tensor, bias: Tensor, rectified: bool) -> Layer:
        """weight: (O, I)."""
        outputs, inputs = weight.shape
        return Layer(self._in_tiles(weight), self._filled(bias), inputs, outputs, rectified)

    def _tower(self, network: TwoTower, base: Base) -> Tower:
        """The item's last layer and the dot product are one: with the user's vector u,
        (W h + b) · u = h · (Wᵀ u) + b · u."""
        users = [linear(each) for each in list(network.user_mlp)[::3]]
        items = [linear(each) for each in list(network.item_mlp)[::3]]
        dimension = network.spec.dimension
        scale, last = 1 / math.sqrt(dimension), users[-1]
        hidden = len(users) > 1
        if hidden:  # u = the last layer's, scaled, and a constant 1 behind it
            weight, bias = last.weight * scale, last.bias * scale
            own = torch.cat([items[-1].weight, items[-1].bias[:, None]], 1)  # (D, H + 1)
        else:
            weight, bias = torch.eye(dimension - 1) * scale, torch.zeros(dimension - 1)
            own = torch.eye(dimension, dimension + 1)  # (D, D + 1)
        weight = torch.cat([weight, torch.zeros(1, weight.shape[1])])  # (D, H or D - 1)
        bias = torch.cat([bias, torch.ones(1)])  # (D,)
        user_layers = [
            *(self._row_layer(each.weight, each.bias, True) for each in users[1:-1]),
            self._row_layer(weight, bias, hidden),
            self._row_layer(own.T, torch.zeros(own.shape[1]), False),
        ]
        item_layers = [self._tile_layer(each.weight, each.bias, True) for each in items[1:-1]]
        return Tower(
            base,
            self._structures(user_layers, Layer),
            self._structures(item_layers, Layer),
            len(user_layers),
            len(item_layers),
            hidden,
        )

    def _fine(self, network: FineNet, base: Base, items: FirstLayer) -> Fine:
        groups = zip(attentions(network.attention), self._spec.attended, strict=True)
        attended = [self._attention(module, group) for module, group in groups]
        experts, gates = network.experts, network.gates
        mixing = torch.cat([experts.weight, gates.weight])
        return Fine(
            base,
            self._structures(attended, Attention),
            len(attended),
            len(network.spec.tasks),
            network.spec.shared_experts,
            network.spec.expert,
            self._tile_layer(items.rest, items.bias, False),
            self._tile_layer(mixing, torch.cat([experts.bias, gates.bias]), True),
            self._place(network.heads),
            self._place(network.bias),
        )

    def _attention(self, module: TargetAttention, group: Attended) -> Attention:
        spec, starts = self._spec, self._starts
        queries = [
            Column(slot, self._rows(starts[spec.item_slots[slot]])) for slot in group.queries
        ]
        return Attention(
            self._integers(group.places, np.int64),
            self._structures(queries, Column),
            len(group.places),
            len(queries),
            len(module.score),
            self._in_tiles(module.query.weight),
            self._in_tiles(module.product.T),
            self._by_inputs(module.key.weight),
            self._filled(module.key.bias),
            self._filled(module.score),
        )


def _up(value: int, to: int) -> int:
    """The next multiple."""
    return -(-value // to) * to
