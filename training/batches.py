"""Batches of a training set as the networks take them.

Symbols: U users of the batch (its distinct requests), N candidates, D distinct item rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predictor.networks import Inputs
from training.dataset import Dataset


def pair_inputs(dataset: Dataset, candidates: NDArray[np.int64]) -> Inputs:
    """Any candidates (N,), each beside its own user: for scoring and for the fine network.

    Returns inputs whose user tensors are (U, …), item_slots (N, Si), `user_of` (N,) into the users.
    """
    rows = dataset.request_row[candidates]  # (N,) i32
    requests, user_of = np.unique(rows, return_inverse=True)  # (U,), (N,)
    return _inputs(dataset, requests, dataset.item_row[candidates], torch.from_numpy(user_of))


def page_inputs(
    dataset: Dataset, requests: NDArray[np.int64]
) -> tuple[Inputs, NDArray[np.int64], Tensor]:
    """Whole requests for the two towers: every user and every distinct row of an item once.

    Returns (inputs with item_slots (D', Si), candidates (N,), item_of (N,) i64 into D'); `user_of`
    is (N,) and names each candidate's user. Crosses with the user are those of any candidate of
    the row: no tower reads them.
    """
    candidates = dataset.candidates(requests)  # (N,) i64
    counts = dataset.first[requests + 1] - dataset.first[requests]  # (U,) i64
    user_of = torch.from_numpy(np.repeat(np.arange(len(requests)), counts))  # (N,) i64
    rows = dataset.tower_row[dataset.item_row[candidates]]  # (N,) i32
    items, item_of = np.unique(rows, return_inverse=True)
    inputs = _inputs(dataset, requests, items, user_of)
    return inputs, candidates, torch.from_numpy(item_of)


def request_inputs(dataset: Dataset, request: int) -> Inputs:
    """One request as the service scores it: one user, all candidates in their order."""
    rows = np.array([request])
    return _inputs(dataset, rows, dataset.item_row[dataset.candidates(rows)], None)


def _inputs(
    dataset: Dataset,
    requests: NDArray[np.integer],
    item_rows: NDArray[np.integer],
    user_of: Tensor | None,
) -> Inputs:
    tensors = dataset.tensors
    return Inputs(
        torch.from_numpy(tensors.user_slots[requests]),  # (U, Su) int32
        torch.from_numpy(tensors.item_slots[item_rows]),  # (N, Si) int32
        tuple(torch.from_numpy(ids[requests]) for ids in tensors.sequences.values()),  # (U, L)
        tuple(torch.from_numpy(length[requests]) for length in tensors.lengths.values()),  # (U,)
        user_of,
    )
