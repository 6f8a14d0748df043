"""What scores a request against the network it was made of: bytes to fold, users without history,
networks of other shapes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from predictor.folded import folded
from predictor.folding import MOST_BYTES, first_layers
from predictor.networks import SCORE_TOLERANCE, Network, build_network
from predictor.spec import FineSpec, TowerSpec, input_spec
from tests.predictor.support import SERVICE, random_inputs

INPUTS = input_spec(SERVICE)
NO_SEQUENCES = dataclasses.replace(INPUTS, sequences=())
NOT_ATTENDED = dataclasses.replace(
    INPUTS,
    sequences=tuple(dataclasses.replace(each, query=-1, group="") for each in INPUTS.sequences),
)
SPECS: dict[str, TowerSpec | FineSpec] = {
    "tower": TowerSpec(INPUTS),
    "tower without hidden layers": TowerSpec(INPUTS, hidden=()),
    "deep tower": TowerSpec(INPUTS, embedding=8, hidden=(24, 12), dimension=7, dropout=0.1),
    "tower without sequences": TowerSpec(NO_SEQUENCES),
    "fine": FineSpec(INPUTS, dropout=0.1),
    "another fine": FineSpec(INPUTS, embedding=8, hidden=20, attention=5, shared_experts=3),
    "fine without sequences": FineSpec(NO_SEQUENCES),
    "fine without attention": FineSpec(NOT_ATTENDED),
}


def network_of(spec: TowerSpec | FineSpec) -> Network:
    """With weights large enough for scores to differ, and biases that are not zero."""
    torch.manual_seed(3)
    network = build_network(spec).eval().requires_grad_(False)
    network.embeddings.weight.mul_(20)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) / 4)
    return network


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("most_bytes", [0, 40_000, MOST_BYTES])
@torch.inference_mode()
def test_scores_are_those_of_the_network(spec: TowerSpec | FineSpec, most_bytes: int) -> None:
    network = network_of(spec)
    score = folded(network, most_bytes)
    for seed, n in enumerate((1, 2, 65)):
        request = random_inputs(n, seed)
        places = range(len(spec.inputs.sequences))
        request = dataclasses.replace(
            request,
            sequences=tuple(request.sequences[place] for place in places),
            lengths=tuple(request.lengths[place] * (seed > 0) for place in places),
        )
        wanted, found = network(request), score(request)
        assert found.shape == wanted.shape
        assert n == 1 or float(wanted.std(0).min()) > 0.01
        torch.testing.assert_close(found, wanted, atol=SCORE_TOLERANCE, rtol=1e-4)
        assert torch.equal(found, score(request))


@torch.inference_mode()
def test_what_is_folded_is_bounded() -> None:
    """The largest tables stay out of it."""
    network = network_of(SPECS["tower"])

    def folded_bytes(most_bytes: int) -> int:
        items = first_layers(network, most_bytes)[1]
        assert sorted(items.folded + items.plain) == list(range(len(INPUTS.tower_slots)))
        return sum(items.block(slot).numel() * 4 for slot in items.folded)

    sizes = sorted(INPUTS.tables[table][1] * 64 * 4 for table in INPUTS.tower_slots)
    assert folded_bytes(sizes[0] - 1) == 0
    assert folded_bytes(sizes[0]) == sizes[0]
    assert folded_bytes(sum(sizes) - 1) == sum(sizes[:-1])
    assert folded_bytes(sum(sizes)) == sum(sizes)


@torch.inference_mode()
def test_ids_of_either_width_are_taken() -> None:
    score, request = folded(network_of(SPECS["fine"])), random_inputs(9)
    wide = dataclasses.replace(
        request,
        user_slots=request.user_slots.long(),
        item_slots=request.item_slots.long(),
        sequences=tuple(each.long() for each in request.sequences),
        lengths=tuple(each.long() for each in request.lengths),
    )
    np.testing.assert_array_equal(score(request), score(wide))
