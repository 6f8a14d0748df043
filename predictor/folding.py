"""What of a network depends on an id alone, multiplied out when a package is loaded.

A first layer over concatenated embeddings is a sum over slots, W · [e_1 … e_S] = Σ W_s e_s, so
each table is multiplied by its slot's part of W beforehand; then a candidate's first layer is the
sum of S rows, without any product. (Linear maps commute with look-ups and sums; the same step as
folding a batch norm into a convolution.) Rows that the factorisation machine needs, e and e ∘ e,
are added up in the same pass. Folded tables are several times as wide as embeddings, and there is
one for each slot that shares a table: the smallest are folded, up to `MOST_BYTES` a side, the
others stay plain: they keep their embeddings and their part of the product.

    S  slots    E  embedding width    O  outputs of the layer    R  what lies behind the slots
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from predictor.networks import Network, TargetAttention, TwoTower

MOST_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class FirstLayer:
    """The first layer over one side.

    embeddings: all tables, (rows, E). tables: (start, rows) of each slot's. parts: each slot's of
    the weight, S × (O, E). rest: of the weight, (O, R). bias: (O,), zeros where it has none.
    sums: whether e and e ∘ e are wanted, too. folded, plain: slots.
    """

    embeddings: Tensor
    tables: tuple[tuple[int, int], ...]
    parts: tuple[Tensor, ...]
    rest: Tensor
    bias: Tensor
    sums: bool
    folded: tuple[int, ...]
    plain: tuple[int, ...]

    def block(self, slot: int) -> Tensor:
        """A slot's table, folded: (rows, O), or (rows, O + 2 E) with e and e ∘ e behind."""
        start, rows = self.tables[slot]
        table = self.embeddings[start : start + rows]  # (rows, E)
        product = table @ self.parts[slot].T  # (rows, O)
        return torch.cat([product, table, table.square()], 1) if self.sums else product


def first_layers(network: Network, most_bytes: int = MOST_BYTES) -> tuple[FirstLayer, FirstLayer]:
    """The user's and the items'. most_bytes: of one side's folded tables."""
    spec = network.spec.inputs
    if isinstance(network, TwoTower):
        user, item, slots = network.user_mlp[0], network.item_mlp[0], spec.tower_slots
    else:
        user, item, slots = network.user_bottom, network.item_bottom, spec.item_slots
    return (
        _first_layer(network, linear(user), spec.user_slots, most_bytes),
        _first_layer(network, linear(item), slots, most_bytes),
    )


def _first_layer(
    network: Network, layer: nn.Linear, slots: Sequence[int], most_bytes: int
) -> FirstLayer:
    """slots: the table of each."""
    embeddings, sizes = network.embeddings, network.spec.inputs.tables
    outputs, width = layer.weight.shape[0], network.spec.embedding
    sums = not isinstance(network, TwoTower)
    bias = dict(layer.named_parameters()).get("bias")
    tables = tuple((embeddings.starts[table], sizes[table][1]) for table in slots)
    wide = outputs + (2 * width if sums else 0)
    fits = _smallest([rows * wide * 4 for _, rows in tables], most_bytes)
    return FirstLayer(
        embeddings=embeddings.weight,
        tables=tables,
        parts=torch.split(layer.weight[:, : len(slots) * width], width, 1),
        rest=layer.weight[:, len(slots) * width :],
        bias=layer.weight.new_zeros(outputs) if bias is None else bias,
        sums=sums,
        folded=tuple(slot for slot, small in enumerate(fits) if small),
        plain=tuple(slot for slot, small in enumerate(fits) if not small),
    )


def _smallest(sizes: Sequence[int], most: int) -> list[bool]:
    """Which of them, from the smallest on, are together at most so large."""
    fits, total = [False] * len(sizes), 0
    for place in sorted(range(len(sizes)), key=sizes.__getitem__):
        total += sizes[place]
        fits[place] = total <= most
    return fits


def linear(module: nn.Module) -> nn.Linear:
    """The layer as what it is."""
    assert isinstance(module, nn.Linear)
    return module


def attentions(modules: nn.ModuleList) -> list[TargetAttention]:
    """The modules as what they are."""
    return [module for module in modules if isinstance(module, TargetAttention)]
