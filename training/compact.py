"""Training on the ids that occur: small tables while learning, the declared ones afterwards.

A hash table of 100,000 rows of which a log touches 15,000 costs its full size in every step of the
optimiser. So the ids of each table are renumbered to those that occur, the networks train on tables
of that size, and `widen` puts the learnt rows back where the plan's transforms point. A row that no
training request touched is zero: an unknown id then adds nothing, instead of the noise of an
untrained embedding.

Symbols: k tables, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from aggregation.tensors import Ids, Tensors
from predictor.networks import Network, build_network
from predictor.spec import InputSpec
from training.dataset import Dataset

START: Final = 0.01  # standard deviation of a fresh embedding


@dataclass(frozen=True)
class Compact:
    """A dataset with renumbered ids, and the way back.

    inputs: the spec of the renumbered tables. full: that of the declared ones. ids: per table, the
    declared id of each renumbered one, ascending; 0 stays 0.
    """

    dataset: Dataset
    inputs: InputSpec
    full: InputSpec
    ids: tuple[NDArray[np.int32], ...]


def compact(dataset: Dataset, full: InputSpec) -> Compact:
    """Renumber the ids of all tables to those that occur anywhere in the dataset."""
    columns = _columns(dataset.tensors, full)
    ids = tuple(
        np.unique(np.concatenate([np.zeros(1, np.int32), *(each.ravel() for each in table)]))
        for table in columns
    )
    tensors = dataset.tensors
    renumbered = Tensors(
        _renumber(tensors.user_slots, full.user_slots, ids),
        _renumber(tensors.item_slots, full.item_slots, ids),
        {
            each.name: np.searchsorted(ids[each.table], tensors.sequences[each.name]).astype(
                np.int32
            )
            for each in full.sequences
        },
        tensors.lengths,
    )
    tables = tuple((name, len(used)) for (name, _), used in zip(full.tables, ids, strict=True))
    return Compact(replace(dataset, tensors=renumbered), replace(full, tables=tables), full, ids)


def start_embeddings(network: Network, dataset: Dataset, requests: NDArray[np.int64]) -> None:
    """Small values for the ids that `requests` (r,) touch, zero for all others.

    Called once, before training, on the network of `Compact.inputs`; draws from torch's generator.

    Small, so that an id met once adds next to nothing to what its attributes say.
    """
    inputs = network.spec.inputs
    tensors = dataset.tensors
    items = np.unique(dataset.item_row[dataset.candidates(requests)])
    seen = Tensors(
        tensors.user_slots[requests],
        tensors.item_slots[items],
        {name: ids[requests] for name, ids in tensors.sequences.items()},
        tensors.lengths,
    )
    starts = network.embeddings.starts
    touched = np.zeros(starts[-1], bool)  # (rows of all tables,)
    for start, table in zip(starts, _columns(seen, inputs), strict=False):
        for ids in table:
            touched[start + np.unique(ids)] = True
    torch.nn.init.normal_(network.embeddings.weight, std=START)
    with torch.no_grad():
        network.embeddings.weight[torch.from_numpy(~touched)] = 0.0


def widen(network: Network, compacted: Compact) -> Network:
    """The network over the declared tables: equal logits for equal values, in eval mode."""
    wide = build_network(replace(network.spec, inputs=compacted.full))
    weights = network.state_dict()
    table = torch.zeros_like(wide.embeddings.weight)  # (rows of all declared tables, E)
    for place, ids in enumerate(compacted.ids):
        small = network.embeddings.starts[place]
        rows = torch.from_numpy(wide.embeddings.starts[place] + ids.astype(np.int64))
        table[rows] = weights["embeddings.weight"][small : small + len(ids)]
    wide.load_state_dict({**weights, "embeddings.weight": table})
    return wide.eval()


def _columns(tensors: Tensors, inputs: InputSpec) -> list[list[Ids]]:
    """Per table, the arrays of ids that point into it."""
    columns: list[list[Ids]] = [[] for _ in inputs.tables]
    for slots, tables in (
        (tensors.user_slots, inputs.user_slots),
        (tensors.item_slots, inputs.item_slots),
    ):
        for slot, table in enumerate(tables):
            columns[table].append(slots[:, slot])
    for each in inputs.sequences:
        columns[each.table].append(tensors.sequences[each.name])
    return columns


def _renumber(slots: Ids, tables: tuple[int, ...], ids: tuple[NDArray[np.int32], ...]) -> Ids:
    """(n, S) declared ids → (n, S) places among the ids that occur."""
    out = np.empty_like(slots)  # (n, S)
    for slot, table in enumerate(tables):
        out[:, slot] = np.searchsorted(ids[table], slots[:, slot])
    return out
