"""The networks as they serve, with torch: tables that were multiplied out (`predictor.folding`) are
looked up and added.

One user a request. Logits agree with those of the networks within `SCORE_TOLERANCE`. Few, large
operations: each one gives up the interpreter lock and has to get it back. `predictor.native` does
the same in one call, where the kernels were built.

    N  candidates    S  slots    E  embedding width    O  outputs of the first layer
    L  length of a sequence      A  attention width    H  hidden    T  tasks    X  shared experts
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from predictor.folding import MOST_BYTES, FirstLayer, attentions, first_layers, linear
from predictor.networks import Embeddings, FineNet, Inputs, Network, TargetAttention, TwoTower
from predictor.spec import InputSpec

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

    def __init__(self, layer: FirstLayer) -> None:
        self._all, self._sums = layer.embeddings, layer.sums
        self._small = torch.tensor(layer.folded, dtype=torch.int64)
        self._large = torch.tensor(layer.plain, dtype=torch.int64)
        self._every = not layer.plain
        offsets, blocks, at = [], [], 0
        for slot in layer.folded:
            blocks.append(layer.block(slot))
            offsets.append(at)
            at += len(blocks[-1])
        self._table = torch.cat(blocks) if blocks else None
        self._offsets = torch.tensor(offsets, dtype=torch.int32)
        starts = [layer.tables[slot][0] for slot in layer.plain]
        self._starts = torch.tensor(starts, dtype=torch.int32)
        parts = [layer.parts[slot] for slot in layer.plain]
        self._weight = torch.cat(parts, 1).T if parts else None

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


class _Tower:
    """The two-tower network. The last layer of the item's side and the dot product are one: with
    the user's vector u, (W h + b) · u = h · (Wᵀ u) + b · u."""

    def __init__(self, network: TwoTower, most_bytes: int) -> None:
        users, items = first_layers(network, most_bytes)
        self._network = network
        self._users, self._items = _FirstLayer(users), _FirstLayer(items)
        self._pooled = users.rest.T.contiguous()  # (P * E, O)
        self._pools = _Pools(network.embeddings, network.spec.inputs)
        self._user_bias, self._item_bias = users.bias, items.bias
        self._slots = network.embeddings.tower_slots
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
        last = linear(self._network.item_mlp[-1])
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
        spec, starts = network.spec.inputs, network.embeddings.starts
        users, items = first_layers(network, most_bytes)
        self._network, self._width = network, network.spec.embedding
        self._hidden = network.spec.hidden
        self._users, self._items = _FirstLayer(users), _FirstLayer(items)
        self._pooled = users.rest.T.contiguous()  # (P * E, H)
        self._pools = _Pools(network.embeddings, spec)
        self._rest = items.rest.T.contiguous()  # (attended + 1) * E, H
        self._attention = [_Attention(module) for module in attentions(network.attention)]
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
