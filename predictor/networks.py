"""The two networks of the cascade.

    U  users (1 when serving)       N  candidates        E  embedding width
    Su, Si  user and item slots     L  sequence length   T  tasks
    P  sequences                    H  hidden width      A  attention width
    X  shared experts               W  expert width      D  tower dimension

A batch holds U users and N candidates; `user_of` (N,) names each candidate's user. While serving
there is one user and `user_of` is None: its part is computed once and broadcast, never repeated.
Equal inputs give equal bits on one machine and thread count. The same candidate in batches of other
sizes agrees within `SCORE_TOLERANCE`, since the matrix kernels may sum in another order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from predictor.spec import Attended, FineSpec, InputSpec, NetworkSpec, TowerSpec

#: |a - b| of one candidate's logit in batches of different size.
SCORE_TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch. Ids are int32 or int64; sequences and lengths are in the spec's order.

    user_slots (U, Su), item_slots (N, Si), sequences P × (U, L), lengths P × (U,),
    user_of (N,) int64, or None for one user.
    """

    user_slots: Tensor
    item_slots: Tensor
    sequences: tuple[Tensor, ...]
    lengths: tuple[Tensor, ...]
    user_of: Tensor | None = None

    def spread(self, per_user: Tensor) -> Tensor:
        """(U, …) -> (N, …), or (1, …) to be broadcast."""
        return per_user if self.user_of is None else per_user[self.user_of]


def draw_normal(weight: Tensor, std: float) -> None:
    """Begin with normally distributed weights; nothing happens to a tensor that has no memory.

    There, torch would load its compiler (800 modules, over a second of one core, and other threads
    wait) only to find that there is nothing to draw.
    """
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


class Embeddings(nn.Module):
    """All embedding tables in one matrix, so that a side is one gather."""

    def __init__(self, spec: InputSpec, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sum(size for _, size in spec.tables), width))
        starts = [0]
        for _, size in spec.tables:
            starts.append(starts[-1] + size)
        self.starts = starts
        for name, tables in (("user", spec.user_slots), ("item", spec.item_slots)):
            offsets = torch.tensor([starts[table] for table in tables], device="cpu")
            self.register_buffer(f"{name}_offsets", offsets, persistent=False)
        self.sequence_specs, self.groups = spec.sequences, spec.groups
        self.tower_slots = len(spec.tower_slots)
        draw_normal(self.weight, 0.05)

    user_offsets: Tensor
    item_offsets: Tensor

    def user(self, inputs: Inputs) -> Tensor:
        """(U, Su, E)."""
        return functional.embedding(inputs.user_slots + self.user_offsets, self.weight)

    def item(self, inputs: Inputs) -> Tensor:
        """(N, Si, E)."""
        return functional.embedding(inputs.item_slots + self.item_offsets, self.weight)

    def tower_item(self, inputs: Inputs) -> Tensor:
        """(N, Si - pairs, E): without the crosses of candidate and user."""
        slots = inputs.item_slots[:, : self.tower_slots] + self.item_offsets[: self.tower_slots]
        return functional.embedding(slots, self.weight)

    def sequences(self, inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
        """Per sequence (U, l, E) and its mask (U, l, 1), l the longest of the batch.

        Aligned sequences are one gather: its gradient is as large as the tables, however few.
        """
        out: dict[int, tuple[Tensor, Tensor]] = {}
        for places in self.groups:
            lengths = inputs.lengths[places[0]]
            longest = int(lengths.max())
            mask = (torch.arange(longest) < lengths[:, None])[:, :, None].float()  # (U, l, 1)
            ids = [
                inputs.sequences[place][:, :longest] + self.starts[self.sequence_specs[place].table]
                for place in places
            ]
            columns = functional.embedding(torch.stack(ids), self.weight)  # (columns, U, l, E)
            out |= {place: (keys, mask) for place, keys in zip(places, columns, strict=True)}
        return [out[place] for place in range(len(self.sequence_specs))]


def _mean_pool(keys: Tensor, mask: Tensor) -> Tensor:
    """(U, l, E), (U, l, 1) -> (U, E); zeros where a sequence is empty."""
    return (keys * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def _mlp(inputs: int, hidden: tuple[int, ...], outputs: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class TwoTower(nn.Module):
    """The coarse ranker: score = user vector · item vector.

    The user vector's last element is the constant 1, so the item vector's last element is the
    item's bias and the score stays a plain dot product, which an index can search. Crosses of
    candidate and user are no input of it: an item has one vector for all users.
    """

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.spec = spec
        inputs, width = spec.inputs, spec.embedding
        self.embeddings = Embeddings(inputs, width)
        fields = len(inputs.user_slots) + len(inputs.sequences)
        self.user_mlp = _mlp(fields * width, spec.hidden, spec.dimension - 1, spec.dropout)
        self.item_mlp = _mlp(
            len(inputs.tower_slots) * width, spec.hidden, spec.dimension, spec.dropout
        )

    def user_vectors(self, inputs: Inputs) -> Tensor:
        """(U, D)."""
        pooled = [_mean_pool(keys, mask) for keys, mask in self.embeddings.sequences(inputs)]
        fields = torch.cat([self.embeddings.user(inputs).flatten(1), *pooled], 1)  # (U, (Su+P)E)
        vectors = self.user_mlp(fields) / math.sqrt(self.spec.dimension)  # (U, D-1)
        return torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1)  # (U, D)

    def item_vectors(self, inputs: Inputs) -> Tensor:
        """(N, D)."""
        vectors: Tensor = self.item_mlp(self.embeddings.tower_item(inputs).flatten(1))
        return vectors

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits, (N,) f32."""
        users, items = self.user_vectors(inputs), self.item_vectors(inputs)
        if inputs.user_of is None:
            return torch.mv(items, users[0])
        return (items * users[inputs.user_of]).sum(1)


class TargetAttention(nn.Module):
    """DIN's activation unit: weight of key k for query q = v · relu(q Wq + k Wk + (q∘k) Wp + b).

    Source: Zhou et al., "Deep Interest Network", KDD 2018; weights go through a softmax here.
    For one user (q∘k_l) Wp is q times a matrix that depends on the user alone, so all candidates
    and keys take one matrix product.
    """

    def __init__(self, width: int, attention: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, attention, bias=False)
        self.key = nn.Linear(width, attention)
        self.product = nn.Parameter(torch.empty(width, attention))
        self.score = nn.Parameter(torch.empty(attention))
        nn.init.xavier_uniform_(self.product)
        draw_normal(self.score, 0.1)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor, user_of: Tensor | None) -> Tensor:
        """query (N, E), keys (U, l, E), mask (U, l, 1) -> (N, E); zeros for empty sequences."""
        length, width = keys.shape[1:]
        if length == 0:
            return torch.zeros_like(query)
        own = self.query(query)[:, None]  # (N, 1, A)
        if user_of is None:
            by_key = keys[0].T[:, :, None] * self.product[:, None]  # (E, l, A)
            crossed = (query @ by_key.reshape(width, -1)).view(-1, length, len(self.score))
        else:
            crossed = (query[:, None] * keys[user_of]) @ self.product  # (N, l, A)
        keyed, valid = self.key(keys), mask[:, :, 0]  # (U, l, A), (U, l)
        if user_of is not None:
            keyed, valid, keys = keyed[user_of], valid[user_of], keys[user_of]
        unit = functional.relu(crossed.add_(own).add_(keyed)) @ self.score  # (N, l)
        weights = unit.masked_fill(valid == 0, -1e9).softmax(1) * valid  # (N, l)
        if user_of is None:
            return weights @ keys[0]
        return torch.bmm(weights[:, None], keys)[:, 0]


class FineNet(nn.Module):
    """The fine ranker: one logit a task.

    Fields are embedded and sequences pooled; those of which an item slot shares the table are also
    attended by the candidate (DIN), the columns of one stored sequence together: an entry's key is
    the sum of its columns' embeddings (video, author, how long it was played, how long ago), the
    query that of the candidate's slots; second-order interactions by factorisation
    machine; a shared bottom whose user half is computed once; then one layer of progressive layered
    extraction (Tang et al., PLE, RecSys 2020): each task mixes the shared experts and its own.
    """

    def __init__(self, spec: FineSpec) -> None:
        super().__init__()
        self.spec = spec
        inputs, width = spec.inputs, spec.embedding
        self.embeddings = Embeddings(inputs, width)
        self.attention = nn.ModuleList(
            TargetAttention(width, spec.attention) for _ in inputs.attended
        )
        user_fields = len(inputs.user_slots) + len(inputs.sequences)
        item_fields = len(inputs.item_slots) + len(self.attention) + 1
        self.user_bottom = nn.Linear(user_fields * width, spec.hidden)
        self.item_bottom = nn.Linear(item_fields * width, spec.hidden, bias=False)
        self.dropout = nn.Dropout(spec.dropout)
        tasks, shared = len(spec.tasks), spec.shared_experts
        self.experts = nn.Linear(spec.hidden, (shared + tasks) * spec.expert)
        self.gates = nn.Linear(spec.hidden, tasks * (shared + 1))
        self.heads = nn.Parameter(torch.empty(tasks, spec.expert))
        self.bias = nn.Parameter(torch.zeros(tasks))
        nn.init.xavier_uniform_(self.heads)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits, (N, T) f32, tasks in the spec's order."""
        users, items = self.embeddings.user(inputs), self.embeddings.item(inputs)
        sequences = self.embeddings.sequences(inputs)
        pooled = [_mean_pool(keys, mask)[:, None] for keys, mask in sequences]  # P × (U, 1, E)
        users = torch.cat([users, *pooled], 1)  # (U, Su+P, E)
        attended = [
            module(*_entries(group, items, sequences), inputs.user_of)  # (N, E)
            for module, group in zip(self.attention, self.spec.inputs.attended, strict=True)
        ]
        item_fields = [items.flatten(1), *attended, self._interactions(inputs, users, items)]
        bottom = inputs.spread(self.user_bottom(users.flatten(1)))  # (N or 1, H)
        hidden = functional.relu(bottom + self.item_bottom(torch.cat(item_fields, 1)))  # (N, H)
        return self._tasks(self.dropout(hidden))

    def _interactions(self, inputs: Inputs, users: Tensor, items: Tensor) -> Tensor:
        """Sum over pairs of fields of their elementwise product, (N, E)."""
        total = inputs.spread(users.sum(1)) + items.sum(1)  # (N, E)
        squares = inputs.spread(users.square().sum(1)) + items.square().sum(1)  # (N, E)
        return 0.5 * (total.square() - squares)

    def _tasks(self, hidden: Tensor) -> Tensor:
        """(N, H) -> (N, T)."""
        tasks, shared, width = len(self.spec.tasks), self.spec.shared_experts, self.spec.expert
        experts = functional.relu(self.experts(hidden)).view(-1, shared + tasks, width)
        gates = self.gates(hidden).view(-1, tasks, shared + 1).softmax(2)  # (N, T, X+1)
        mixed = gates[:, :, shared:] * experts[:, shared:]  # (N, T, W): the task's own expert
        mixed = mixed + torch.bmm(gates[:, :, :shared], experts[:, :shared])  # (N, T, W)
        logits: Tensor = (self.dropout(mixed) * self.heads).sum(2) + self.bias  # (N, T)
        return logits


def _entries(
    group: Attended, items: Tensor, sequences: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Query (N, E), keys (U, l, E) and mask (U, l, 1) of aligned sequences: the columns' sums."""
    query, *queries = (items[:, slot] for slot in group.queries)
    (keys, mask), *columns = (sequences[place] for place in group.places)
    for more in queries:
        query = query + more
    for more, _ in columns:
        keys = keys + more
    return query, keys, mask


Network = TwoTower | FineNet


def build_network(spec: NetworkSpec) -> Network:
    """A freshly initialised network in training mode; seed torch before for the same weights."""
    return TwoTower(spec) if isinstance(spec, TowerSpec) else FineNet(spec)
