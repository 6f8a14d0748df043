"""Networks on renumbered tables say what the networks on the declared tables say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from predictor.networks import FineNet, Network, TwoTower
from predictor.spec import FineSpec, TowerSpec, input_spec
from tests.training.world import PROGRAM
from training.batches import pair_inputs
from training.compact import compact, start_embeddings, widen
from training.dataset import Dataset

FULL = input_spec(PROGRAM.service)


def networks(dataset: Dataset) -> list[Network]:
    inputs = compact(dataset, FULL).inputs
    torch.manual_seed(3)
    return [FineNet(FineSpec(inputs)), TwoTower(TowerSpec(inputs))]


@pytest.mark.parametrize("which", [0, 1])
def test_widened_network_gives_equal_bits(dataset: Dataset, which: int) -> None:
    small = compact(dataset, FULL)
    network = networks(dataset)[which].eval()
    wide = widen(network, small)
    assert wide.spec.inputs == FULL
    assert not wide.training
    rows = np.arange(0, len(dataset.item_ids), 7)
    with torch.inference_mode():
        before = network(pair_inputs(small.dataset, rows))
        after = wide(pair_inputs(dataset, rows))
    assert before.equal(after)


def test_tables_hold_what_occurs_and_zero_stays_zero(dataset: Dataset) -> None:
    small = compact(dataset, FULL)
    for (name, size), (declared, full_size), ids in zip(
        small.inputs.tables, FULL.tables, small.ids, strict=True
    ):
        assert name == declared
        assert size == len(ids) <= full_size
        assert ids[0] == 0
        assert (np.diff(ids) > 0).all()
    videos = [name for name, _ in FULL.tables].index("video")
    assert len(small.ids[videos]) <= 41  # 40 videos and 0, whatever the declared 50,000


def test_ids_that_training_never_touched_add_nothing(dataset: Dataset) -> None:
    small = compact(dataset, FULL)
    network = networks(dataset)[0]
    start_embeddings(network, small.dataset, np.arange(5))
    weights = network.embeddings.weight.detach()
    touched = weights.abs().sum(1) > 0
    starts = network.embeddings.starts
    user_table = FULL.user_slots[0]
    used = touched[starts[user_table] : starts[user_table + 1]].nonzero()[:, 0].numpy()
    assert set(used) == set(np.unique(small.dataset.tensors.user_slots[:5, 0]))
    assert 0 < touched.sum() < len(weights)
    wide = widen(network, small)
    assert int((wide.embeddings.weight.abs().sum(1) > 0).sum()) == int(touched.sum())
