"""Networks: shapes, one user against many, determinism, attention against its slow form."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from predictor.networks import (
    SCORE_TOLERANCE,
    Inputs,
    Network,
    TargetAttention,
    build_network,
)
from predictor.spec import FineSpec, TowerSpec, dump_spec, input_spec, load_spec
from schemas.errors import PackageError, PlanError
from schemas.plan import TransformPlan
from tests.predictor.support import SERVICE, random_inputs

SPECS: list[TowerSpec | FineSpec] = [TowerSpec(input_spec(SERVICE)), FineSpec(input_spec(SERVICE))]


def network_of(spec: TowerSpec | FineSpec) -> Network:
    torch.manual_seed(7)
    return build_network(spec).eval()


def joined(requests: list[Inputs]) -> Inputs:
    """Several one-user requests as one training batch."""
    counts = torch.tensor([len(request.item_slots) for request in requests])
    places = range(len(requests[0].sequences))
    return Inputs(
        torch.cat([request.user_slots for request in requests]),
        torch.cat([request.item_slots for request in requests]),
        tuple(torch.cat([request.sequences[place] for request in requests]) for place in places),
        tuple(torch.cat([request.lengths[place] for request in requests]) for place in places),
        torch.arange(len(requests)).repeat_interleave(counts),
    )


def chosen(request: Inputs, rows: torch.Tensor) -> Inputs:
    return dataclasses.replace(request, item_slots=request.item_slots[rows])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@torch.inference_mode()
def test_one_user_equals_many(spec: TowerSpec | FineSpec) -> None:
    network = network_of(spec)
    requests = [random_inputs(n, seed) for seed, n in enumerate((5, 1, 40))]
    requests[1] = dataclasses.replace(  # a user without any history
        requests[1], lengths=tuple(torch.zeros_like(each) for each in requests[1].lengths)
    )
    together = network(joined(requests))
    alone = torch.cat([network(request) for request in requests])
    assert together.shape == ((46,) if spec.kind == "two_tower" else (46, 3))
    torch.testing.assert_close(together, alone, atol=SCORE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@torch.inference_mode()
def test_equal_inputs_give_equal_bits_and_batches_agree(spec: TowerSpec | FineSpec) -> None:
    network, request = network_of(spec), random_inputs(300)
    scores = network(request)
    assert torch.equal(scores, network(request))
    for size in (1, 2, 21, 128):
        part = network(chosen(request, torch.arange(size)))
        torch.testing.assert_close(part, scores[:size], atol=SCORE_TOLERANCE, rtol=0)


@torch.inference_mode()
def test_padding_behind_a_length_changes_nothing() -> None:
    network, request = network_of(SPECS[1]), random_inputs(9)
    lengths = tuple(torch.full_like(each, 2) for each in request.lengths)
    padded = [ids.clone() for ids in request.sequences]
    for ids in padded:
        ids[:, 2:] = 1
    left = network(dataclasses.replace(request, lengths=lengths))
    right = network(dataclasses.replace(request, lengths=lengths, sequences=tuple(padded)))
    assert torch.equal(left, right)


@torch.inference_mode()
def test_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    attention = TargetAttention(8, 5)
    query, keys = torch.randn(4, 8), torch.randn(1, 6, 8)
    mask = (torch.arange(6) < 4).float()[None, :, None]
    found = attention(query, keys, mask, None)
    for n in range(4):
        scores = [
            torch.relu(
                attention.query(query[n])
                + attention.key(keys[0, place])
                + (query[n] * keys[0, place]) @ attention.product
            )
            @ attention.score
            for place in range(4)
        ]
        weights = torch.stack(scores).softmax(0)
        torch.testing.assert_close(found[n], weights @ keys[0, :4])


@torch.inference_mode()
def test_a_tower_takes_no_cross_of_candidate_and_user() -> None:
    tower, fine, request = network_of(SPECS[0]), network_of(SPECS[1]), random_inputs(9)
    pairs = len(SERVICE.crosses_of("pair"))
    slots = request.item_slots.clone()
    slots[:, -pairs:] = 0
    other = dataclasses.replace(request, item_slots=slots)
    assert torch.equal(tower(request), tower(other))
    assert not torch.equal(fine(request), fine(other))
    slots[:, -pairs - 1] += 1  # the candidate's own cross, which the tower takes
    assert not torch.equal(tower(request), tower(other))


def test_columns_of_one_sequence_are_attended_as_one() -> None:
    inputs = input_spec(SERVICE)
    names = [each.name for each in inputs.sequences]
    assert names[:3] == ["last_videos", "authors", "ages"]
    assert [inputs.sequences[place].query for place in range(3)] == [0, 1, -1]
    assert [(each.places, each.queries) for each in inputs.attended] == [
        ((0, 1, 2), (0, 1)),
        ((3,), (1,)),
        ((4,), (1,)),
    ]
    alone = dataclasses.replace(
        inputs, sequences=tuple(dataclasses.replace(each, group="") for each in inputs.sequences)
    )
    assert [each.places for each in alone.attended] == [(0,), (1,), (3,), (4,)]


@pytest.mark.parametrize("kept", [(), ("ages",), ("ages", "interests"), ("authors", "ages")])
@torch.inference_mode()
def test_networks_take_whatever_sequences_there_are(kept: tuple[str, ...]) -> None:
    inputs, request = input_spec(SERVICE), random_inputs(7)
    places = [at for at, each in enumerate(inputs.sequences) if each.name in kept]
    fewer = dataclasses.replace(inputs, sequences=tuple(inputs.sequences[at] for at in places))
    request = dataclasses.replace(
        request,
        sequences=tuple(request.sequences[at] for at in places),
        lengths=tuple(request.lengths[at] for at in places),
    )
    for spec in (TowerSpec(fewer), FineSpec(fewer)):
        assert network_of(spec)(request).isfinite().all()
    assert len(fewer.attended) == len({"interests", "authors"} & set(kept))


@torch.inference_mode()
def test_an_entry_is_all_its_columns() -> None:
    """Equal multisets of each column, paired otherwise, are other entries."""
    network, request = network_of(SPECS[1]), random_inputs(9)
    network.embeddings.weight.mul_(20)  # far from a fresh network, whose attention is all alike
    full = tuple(torch.full_like(each, ids.shape[1]) for each, ids in zip(
        request.lengths, request.sequences, strict=True))  # fmt: skip
    request = dataclasses.replace(request, lengths=full)
    videos, authors, ages, *others = request.sequences
    together = (videos.flip(1), authors.flip(1), ages.flip(1), *others)
    apart = (videos, authors.flip(1), ages, *others)
    plain = network(request)
    turned = network(dataclasses.replace(request, sequences=together))
    torch.testing.assert_close(turned, plain, atol=SCORE_TOLERANCE, rtol=0)
    paired = network(dataclasses.replace(request, sequences=apart))
    assert (paired - plain).abs().max() > 10 * SCORE_TOLERANCE


def test_gradients_reach_every_parameter() -> None:
    batch = joined([random_inputs(6, 1), random_inputs(7, 2)])
    for spec in SPECS:
        network = network_of(spec).train()
        network(batch).sum().backward()
        assert all(each.grad is not None for each in network.parameters())


def test_spec_round_trip_and_refusals() -> None:
    for spec in SPECS:
        assert load_spec(dump_spec(spec), "spec") == spec
    data = dump_spec(SPECS[1])
    for broken in ({**data, "kind": "linear"}, {**data, "hidden": 0}, {**data, "extra": 1}, 7):
        with pytest.raises(PackageError):
            load_spec(broken, "spec")


def test_tables_are_shared_and_sized_once() -> None:
    inputs = input_spec(SERVICE)
    names = [name for name, _ in inputs.tables]
    assert len(names) == len(set(names))
    for sequence in inputs.sequences:
        assert sequence.query < 0 or inputs.item_slots[sequence.query] == sequence.table
    slot = dataclasses.replace(
        SERVICE.item_slots[0], transform=TransformPlan("hash", 12, buckets=10)
    )
    other = dataclasses.replace(SERVICE, item_slots=(slot, *SERVICE.item_slots[1:]))
    with pytest.raises(PlanError, match="slots that share a table"):
        input_spec(other)
