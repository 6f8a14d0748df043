"""The networks as they serve: what depends on an id alone is computed when a package is loaded.

The first layer over concatenated embeddings is a sum over slots, W · [e_1 … e_S] = Σ W_s e_s, so
each table is multiplied by its slot's part of W beforehand; then a candidate's first layer is the
sum of S rows, without any product. (Linear maps commute with look-ups and sums; the same step as
folding a batch norm into a convolution.) Rows that the factorisation machine needs, e and e ∘ e,
are added up in the same pass. Folded tables are several times as wide as embeddings, and there is
one for each slot that shares a table: the smallest are folded, up to `MOST_BYTES` a side, the
others keep their embeddings and their part of the product.

One user a request. Logits agree with those of the networks within `SCORE_TOLERANCE`. Few, large
operations: each one gives up the interpreter lock and has to get it back.

    N  candidates    S  slots    E  embedding width    O  outputs of the first layer
    L  length of a sequence      A  attention width    H  hidden    T  tasks    X  shared experts
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from predictor.networks import Embeddings, FineNet, Inputs, Network, TargetAttention, TwoTower
from predictor.spec import InputSpec

MOST_BYTES: Final = 64 << 20

Scorer = Callable[[Inputs], Tensor]


def folded(network: Network, most_bytes: int = MOST_BYTES) -> Scorer:
    """What scores one user's requests as `network` does: (N,) of a two-tower, (N, T) of a fine
    network. The network's weights must not change any more. most_bytes: of one side's folded
    tables."""
    with torch.inference_mode():
        if isinstance(network, TwoTower):
            return _Tower(network, most_bytes)
        return _Fine(network, most_bytes)


class _FirstLayer:
    """ids (N, S) -> (N, O), or (N, O + 2 E) with the sums of e and e ∘ e behind it."""

    def __init__(
        self,
        embeddings: Embeddings,
        tables: Sequence[tuple[int, int]],
        weight: Tensor,
        most_bytes: int,
        *,
        sums: bool = False,
    ) -> None:
        """tables: (start, rows) of each slot's table. weight: (O, S * E)."""
        self._all, self._sums = embeddings.weight, sums
        parts = torch.split(weight, self._all.shape[1], 1)  # S × (O, E)
        wide = weight.shape[0] + (2 * self._all.shape[1] if sums else 0)
        small = _smallest([rows * wide * 4 for _, rows in tables], most_bytes)
        self._small = torch.tensor([slot for slot, fits in enumerate(small) if fits])
        self._large = torch.tensor([slot for slot, fits in enumerate(small) if not fits])
        self._every = all(small)
        offsets, blocks, at = [], [], 0
        for slot in self._small.tolist():
            start, rows = tables[slot]
            table = self._all[start : start + rows]  # (rows, E)
            block = [table @ parts[slot].T, *((table, table.square()) if sums else ())]
            blocks.append(torch.cat(block, 1))
            offsets.append(at)
            at += rows
        self._table = torch.cat(blocks) if blocks else None
        self._offsets = torch.tensor(offsets, dtype=torch.int32)
        large = self._large.tolist()
        self._starts = torch.tensor([tables[slot][0] for slot in large], dtype=torch.int32)
        self._weight = torch.cat([parts[slot] for slot in large], 1).T if large else None

    def __call__(self, ids: Tensor) -> Tensor:
        out: Tensor | None = None
        if self._table is not None:
            small = ids if self._every else ids[:, self._small]  # (N, S')
            out = functional.embedding_bag(small + self._offsets, self._table, mode="sum")
        if self._weight is not None:
            found = functional.embedding(ids[:, self._large] + self._starts, self._all)
            more = found.flatten(1) @ self._weight  # (N, O)
            if self._sums:
                more = torch.cat([more, found.sum(1), found.square().sum(1)], 1)
            out = more if out is None else out.add_(more)
        assert out is not None
        return out


def _smallest(sizes: Sequence[int], most: int) -> list[bool]:
    """Which of them, from the smallest on, are together at most so large."""
    fits, total = [False] * len(sizes), 0
    for place in sorted(range(len(sizes)), key=sizes.__getitem__):
        total += sizes[place]
        fits[place] = total <= most
    return fits


class _Pools:
    """The means of one user's sequences, (P, E); zeros where one is empty."""

    def __init__(self, embeddings: Embeddings, spec: InputSpec) -> None:
        self._all = embeddings.weight
        longest = max((each.capacity for each in spec.sequences), default=0)
        starts = [embeddings.starts[each.table] for each in spec.sequences]
        self._starts = torch.tensor(starts, dtype=torch.int32)[:, None]  # (P, 1)
        lengths = torch.arange(longest + 1)[:, None]
        shares = (torch.arange(longest) < lengths) / lengths.clamp(min=1)
        self._shares = shares  # (longest + 1, longest): of each entry in the mean, by length
        self._longest = longest

    def __call__(self, inputs: Inputs) -> Tensor:
        longest = self._longest
        padded = [functional.pad(ids[0], (0, longest - ids.shape[1])) for ids in inputs.sequences]
        ids = torch.stack(padded) + self._starts  # (P, longest)
        shares = self._shares[torch.cat(inputs.lengths).long()]  # (P, longest)
        return functional.embedding_bag(ids, self._all, per_sample_weights=shares, mode="sum")


def _tables(embeddings: Embeddings, spec: InputSpec, slots: Sequence[int]) -> list[tuple[int, int]]:
    """(start, rows) of the slots' tables."""
    return [(embeddings.starts[table], spec.tables[table][1]) for table in slots]


class _Tower:
    """The two-tower network. The last layer of the item's side and the dot product are one: with
    the user's vector u, (W h + b) · u = h · (Wᵀ u) + b · u."""

    def __init__(self, network: TwoTower, most_bytes: int) -> None:
        spec, embeddings = network.spec.inputs, network.embeddings
        width, users = network.spec.embedding, len(spec.user_slots)
        self._network = network
        first, item = _linear(network.user_mlp[0]), _linear(network.item_mlp[0])
        self._users = _FirstLayer(
            embeddings,
            _tables(embeddings, spec, spec.user_slots),
            first.weight[:, : users * width],
            most_bytes,
        )
        self._pooled = first.weight[:, users * width :].T.contiguous()  # (P * E, O)
        self._pools = _Pools(embeddings, spec)
        tables = _tables(embeddings, spec, spec.tower_slots)
        self._items = _FirstLayer(embeddings, tables, item.weight, most_bytes)
        self._user_bias, self._item_bias = first.bias, item.bias
        self._slots = embeddings.tower_slots
        self._scale = 1 / math.sqrt(network.spec.dimension)

    def __call__(self, inputs: Inputs) -> Tensor:
        user = self._users(inputs.user_slots).add_(self._user_bias)  # (1, O)
        if inputs.sequences:
            user.addmm_(self._pools(inputs).view(1, -1), self._pooled)
        user = self._network.user_mlp[1:](user)[0] * self._scale  # (D - 1,)
        user = torch.cat([user, user.new_ones(1)])  # (D,)
        hidden = self._items(inputs.item_slots[:, : self._slots]).add_(self._item_bias)
        if len(self._network.item_mlp) == 1:
            return torch.mv(hidden, user)
        hidden = self._network.item_mlp[1:-1](hidden)  # (N, H)
        last = _linear(self._network.item_mlp[-1])
        return torch.mv(hidden, user @ last.weight).add_(last.bias @ user)


class _Attention:
    """TargetAttention for one user: all that depends on a key is one matrix and one bias."""

    def __init__(self, module: TargetAttention) -> None:
        self._module = module
        self._query = module.query.weight.T[:, None]  # (E, 1, A)
        self._product = module.product[:, None]  # (E, 1, A)

    def __call__(self, query: Tensor, keys: Tensor) -> Tensor:
        """query (N, E), keys (L, E) -> (N, E)."""
        length, width = keys.shape
        if not length:
            return torch.zeros_like(query)
        by_key = (keys.T[:, :, None] * self._product).add_(self._query)  # (E, L, A)
        keyed = self._module.key(keys).view(1, -1)  # (1, L * A)
        unit = torch.addmm(keyed, query, by_key.reshape(width, -1)).relu_()  # (N, L * A)
        scores = unit.view(len(query), length, -1) @ self._module.score  # (N, L)
        return scores.softmax(1) @ keys


class _Fine:
    """The fine network."""

    def __init__(self, network: FineNet, most_bytes: int) -> None:
        spec, embeddings = network.spec.inputs, network.embeddings
        width, users, items = network.spec.embedding, len(spec.user_slots), len(spec.item_slots)
        self._network, self._width, self._hidden = network, width, network.spec.hidden
        bottom, item_bottom = network.user_bottom.weight, network.item_bottom.weight
        self._users = _FirstLayer(
            embeddings,
            _tables(embeddings, spec, spec.user_slots),
            bottom[:, : users * width],
            most_bytes,
            sums=True,
        )
        self._pooled = bottom[:, users * width :].T.contiguous()  # (P * E, H)
        self._pools = _Pools(embeddings, spec)
        self._items = _FirstLayer(
            embeddings,
            _tables(embeddings, spec, spec.item_slots),
            item_bottom[:, : items * width],
            most_bytes,
            sums=True,
        )
        self._rest = item_bottom[:, items * width :].T.contiguous()  # (attended + 1) * E, H
        self._attention = [_Attention(module) for module in _attentions(network)]
        starts = embeddings.starts
        self._attended = [
            (
                torch.tensor(group.queries),
                torch.tensor([starts[spec.item_slots[slot]] for slot in group.queries]),
                group.places,
                torch.tensor([starts[spec.sequences[place].table] for place in group.places]),
            )
            for group in spec.attended
        ]

    def __call__(self, inputs: Inputs) -> Tensor:
        user, width, hidden = self._users(inputs.user_slots), self._width, self._hidden
        if inputs.sequences:
            pooled = self._pools(inputs)  # (P, E)
            user[:, :hidden].addmm_(pooled.view(1, -1), self._pooled)
            user[:, hidden : hidden + width].add_(pooled.sum(0))
            user[:, hidden + width :].add_(pooled.square().sum(0))
        both = self._items(inputs.item_slots).add_(user)  # (N, H + 2 E)
        total, squares = both[:, hidden : hidden + width], both[:, hidden + width :]
        fields = [*self._attentions(inputs), total.square().sub_(squares).mul_(0.5)]
        bottom = torch.addmm(both[:, :hidden], torch.cat(fields, 1), self._rest)  # (N, H)
        return self._tasks(bottom.add_(self._network.user_bottom.bias).relu_())

    def _attentions(self, inputs: Inputs) -> list[Tensor]:
        """Per group of aligned sequences (N, E)."""
        table, out = self._network.embeddings.weight, []
        for attention, (slots, query_starts, places, key_starts) in zip(
            self._attention, self._attended, strict=True
        ):
            asked = inputs.item_slots[:, slots] + query_starts  # (N, queries)
            query = functional.embedding_bag(asked, table, mode="sum")  # (N, E)
            length = int(inputs.lengths[places[0]])
            columns = [inputs.sequences[place][0, :length] for place in places]
            if length:
                ids = torch.stack(columns, 1) + key_starts  # (L, columns)
                keys = functional.embedding_bag(ids, table, mode="sum")  # (L, E)
            else:
                keys = table[:0]
            out.append(attention(query, keys))
        return out

    def _tasks(self, bottom: Tensor) -> Tensor:
        """(N, H) -> (N, T): an expert's part in a task's logit is its dot product with the head."""
        network = self._network
        tasks, shared = len(network.spec.tasks), network.spec.shared_experts
        experts = network.experts(bottom).relu_().view(len(bottom), shared + tasks, -1)
        parts = experts @ network.heads.T  # (N, X + T, T)
        gates = network.gates(bottom).view(-1, tasks, shared + 1).softmax(2)  # (N, T, X + 1)
        own = parts[:, shared:].diagonal(dim1=1, dim2=2)  # (N, T)
        mixed = (gates[:, :, :shared] * parts[:, :shared].transpose(1, 2)).sum(2)  # (N, T)
        logits: Tensor = mixed.add_(own * gates[:, :, shared]).add_(network.bias)
        return logits


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module


def _attentions(network: FineNet) -> list[TargetAttention]:
    return [module for module in network.attention if isinstance(module, TargetAttention)]
