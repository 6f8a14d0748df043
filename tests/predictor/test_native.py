"""The networks by the kernels against the networks themselves: specs, weights and requests of every
kind, ids that no table has, threads, and what there is without kernels."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from aggregation.native.library import Kernels
from aggregation.tensors import Tensors
from predictor.card import Expected
from predictor.folded import folded
from predictor.folding import MOST_BYTES
from predictor.native import NativeScorer, native_scorer
from predictor.native_layouts import STRUCTURES
from predictor.networks import SCORE_TOLERANCE, Inputs
from predictor.package import Model, load_package
from predictor.spec import FineSpec, InputSpec, NetworkSpec, SequenceInput, TowerSpec, input_spec
from tests.predictor.support import SERVICE, publish, random_inputs
from tests.predictor.test_folded import SPECS, network_of


@st.composite
def input_specs(draw: st.DrawFn) -> InputSpec:
    """Few slots over few tables; sequences alone and aligned, attended and not."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    table = st.integers(0, len(sizes) - 1)
    items = draw(st.lists(table, min_size=1, max_size=7))
    capacities = {"": draw(st.integers(1, 40)), "g": draw(st.integers(1, 20))}
    sequences = []
    for place in range(draw(st.integers(0, 4))):
        group, of = draw(st.sampled_from(("", "g"))), draw(table)
        query = items.index(of) if of in items and draw(st.booleans()) else -1
        sequences.append(SequenceInput(f"s{place}", of, capacities[group], query, group))
    return InputSpec(
        tuple((f"t{place}", size) for place, size in enumerate(sizes)),
        tuple(draw(st.lists(table, min_size=1, max_size=4))),
        tuple(items),
        tuple(sequences),
        draw(st.integers(0, len(items) - 1)),
    )


@st.composite
def specs(draw: st.DrawFn) -> NetworkSpec:
    """Widths below, at and above those of vectors and tiles."""
    inputs, width = draw(input_specs()), st.integers(1, 40)
    if draw(st.booleans()):
        hidden = tuple(draw(st.lists(width, max_size=3)))
        return TowerSpec(
            inputs, embedding=draw(width), hidden=hidden, dimension=draw(st.integers(2, 40))
        )
    return FineSpec(
        inputs,
        embedding=draw(width),
        hidden=draw(width),
        attention=draw(width),
        shared_experts=draw(st.integers(1, 4)),
        expert=draw(width),
        tasks=("a", "b", "c", "d")[: draw(st.integers(1, 4))],
    )


def inputs_for(spec: InputSpec, n: int, seed: int) -> Inputs:
    """Ids from all of each table, of either width; lengths with zero and all among them."""
    rng = np.random.default_rng(seed)
    dtype = np.int32 if rng.integers(2) else np.int64

    def ids(rows: int, tables: tuple[int, ...]) -> torch.Tensor:
        high = [spec.tables[table][1] for table in tables]
        return torch.from_numpy(rng.integers(0, high, (rows, len(high))).astype(dtype))

    lengths: dict[int, int] = {}
    for places in spec.groups:
        capacity = spec.sequences[places[0]].capacity
        length = (0, capacity, int(rng.integers(0, capacity + 1)))[rng.integers(3)]
        lengths |= dict.fromkeys(places, length)
    return Inputs(
        ids(1, spec.user_slots),
        ids(n, spec.item_slots),
        tuple(ids(1, (each.table,) * each.capacity) for each in spec.sequences),
        tuple(torch.tensor([lengths[place]]) for place in range(len(spec.sequences))),
    )


def lanes_here(library: Kernels) -> list[int]:
    """The widths of vectors that this machine computes in."""
    most = library.free.network_lanes()
    return [lanes for lanes in (4, 8, 16) if lanes <= most]


@given(
    spec=specs(),
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([0, 1, 3, 4, 15, 16, 17, 40]),
    most_bytes=st.sampled_from([0, 2_000, 20_000, MOST_BYTES]),
)
@settings(max_examples=150)
@torch.inference_mode()
def test_scores_are_those_of_the_network(
    spec: NetworkSpec, seed: int, n: int, most_bytes: int, built: Kernels
) -> None:
    network, request = network_of(spec), inputs_for(spec.inputs, n, seed)
    wanted = network(request)
    for lanes in lanes_here(built):
        score = NativeScorer(network, built, most_bytes, lanes)
        found = score(request)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, atol=SCORE_TOLERANCE, rtol=1e-4)
        assert torch.equal(found, score(request))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@torch.inference_mode()
def test_scores_of_a_services_size(spec: NetworkSpec, built: Kernels) -> None:
    network = network_of(spec)
    score, torchs = NativeScorer(network, built), folded(network)
    places = range(len(spec.inputs.sequences))
    for n in (1, 100, 501):
        request = random_inputs(n, n)
        request = dataclasses.replace(
            request,
            sequences=tuple(request.sequences[place] for place in places),
            lengths=tuple(request.lengths[place] for place in places),
        )
        found, wanted = score(request), network(request)
        assert n == 1 or float(wanted.std(0).min()) > 0.01
        torch.testing.assert_close(found, wanted, atol=SCORE_TOLERANCE, rtol=1e-4)
        torch.testing.assert_close(found, torchs(request), atol=SCORE_TOLERANCE, rtol=1e-4)


def test_structures_are_laid_out_as_the_kernels_have_them(built: Kernels) -> None:
    sizes = np.zeros(len(STRUCTURES), np.int64)
    built.free.network_sizes(sizes.ctypes.data)
    assert sizes.tolist() == [ctypes.sizeof(each) for each in STRUCTURES]


# --- what does not fit ------------------------------------------------------------------------


def tensors_of(request: Inputs, spec: InputSpec) -> Tensors:
    """The request as the aggregation gives it."""
    names = [each.name for each in spec.sequences]
    return Tensors(
        request.user_slots.numpy(),
        request.item_slots.numpy(),
        {name: ids.numpy() for name, ids in zip(names, request.sequences, strict=True)},
        {name: length.numpy() for name, length in zip(names, request.lengths, strict=True)},
    )


@pytest.mark.parametrize("kind", ["tower", "fine"])
@torch.inference_mode()
def test_of_chosen_rows(kind: str, built: Kernels) -> None:
    spec = SPECS[kind]
    score, request = NativeScorer(network_of(spec), built), random_inputs(60)
    tensors, rows = tensors_of(request, spec.inputs), np.array([3, 59, 0, 3])
    chosen = dataclasses.replace(request, item_slots=request.item_slots[rows])
    np.testing.assert_array_equal(score.of_tensors(tensors, rows), score(chosen).numpy())
    apart = dataclasses.replace(tensors, item_slots=np.asfortranarray(tensors.item_slots))
    np.testing.assert_array_equal(score.of_tensors(apart, rows), score(chosen).numpy())
    tensors.item_slots.setflags(write=False)
    np.testing.assert_array_equal(score.of_tensors(tensors), score(request).numpy())
    for row in (-1, 60, 2**62):
        with pytest.raises(IndexError, match="60 candidates"):
            score.of_tensors(tensors, np.array([5, row]))


@pytest.mark.parametrize("kind", ["tower", "fine"])
@pytest.mark.parametrize("by", [0, 1, 2**31, 2**40, 2**62])
@torch.inference_mode()
def test_ids_of_no_table_are_refused(kind: str, by: int, built: Kernels) -> None:
    """Just above, just below, and where an address would leave the memory."""
    spec = SPECS[kind]
    inputs, score = spec.inputs, NativeScorer(network_of(spec), built)
    sizes = [size for _, size in inputs.tables]
    request = random_inputs(20)
    slots = inputs.tower_slots if kind == "tower" else inputs.item_slots

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(IndexError, match=match):
            score(dataclasses.replace(request, **changes))

    def spoilt(ids: torch.Tensor, row: int, column: int, value: int) -> torch.Tensor:
        wrong = ids.long()
        wrong[row, column] = value
        return wrong

    for place in (0, len(inputs.user_slots) - 1):
        for value in (sizes[inputs.user_slots[place]] + by, -1 - by):
            user = spoilt(request.user_slots, 0, place, value)
            refused(rf"user_slots\[0, {place}\]: needs an id", user_slots=user)
    for place in (0, len(slots) - 1):
        for value in (sizes[slots[place]] + by, -1 - by):
            items = spoilt(request.item_slots, 17, place, value)
            refused(rf"item_slots\[17, {place}\]: needs an id", item_slots=items)
    full = tuple(torch.tensor([each.capacity]) for each in inputs.sequences)
    for place, sequence in enumerate(inputs.sequences):
        ids = list(request.sequences)
        ids[place] = spoilt(ids[place], 0, sequence.capacity - 1, sizes[sequence.table] + by)
        refused(rf"sequences\[{place}\]\[0", sequences=tuple(ids), lengths=full)
        for length in (sequence.capacity + 1 + by, -1 - by):
            refused("lengths", lengths=(torch.tensor([length]),) * len(full))


@torch.inference_mode()
def test_what_lies_behind_a_length_is_not_looked_at(built: Kernels) -> None:
    request, score = random_inputs(5), NativeScorer(network_of(SPECS["fine"]), built)
    short = dataclasses.replace(request, lengths=tuple(each * 0 for each in request.lengths))
    wrong = tuple(each + 2**30 for each in request.sequences)
    assert torch.equal(score(short), score(dataclasses.replace(short, sequences=wrong)))


def test_requests_of_other_shapes_are_refused(built: Kernels) -> None:
    score, request = NativeScorer(network_of(SPECS["fine"]), built), random_inputs(4)
    two = dataclasses.replace(request, user_slots=request.user_slots.repeat(2, 1))
    narrow = dataclasses.replace(request, item_slots=request.item_slots[:, 1:])
    fewer = dataclasses.replace(request, sequences=request.sequences[1:])
    flat = dataclasses.replace(request, sequences=tuple(each[0] for each in request.sequences))
    for wrong in (two, narrow, fewer, flat):
        with pytest.raises(ValueError, match="got"):
            score(wrong)


def check_networks(library: Kernels, seed: int) -> None:
    """Ids and lengths of any kind, by every width of vectors: what runs under sanitizers."""

    @hypothesis.seed(seed)
    @settings(  # in a process that has not the suite's
        max_examples=6,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(spec=specs(), n=st.integers(0, 40), most_bytes=st.sampled_from([0, 2_000, MOST_BYTES]))
    @torch.inference_mode()
    def check(spec: NetworkSpec, n: int, most_bytes: int) -> None:
        rng = np.random.default_rng(seed + n)
        network, good = network_of(spec), inputs_for(spec.inputs, n, seed)
        parts = [good.user_slots, good.item_slots, *good.sequences, *good.lengths]
        spoilt = parts[rng.integers(len(parts))].numpy()
        for lanes in lanes_here(library):
            score = NativeScorer(network, library, most_bytes, lanes)
            assert score(good).shape[0] == n
        if spoilt.size:
            spoilt.flat[rng.integers(spoilt.size)] = rng.integers(-(2**31), 2**31 - 1)
            with contextlib.suppress(IndexError):
                score(good)

    check()


# --- threads ----------------------------------------------------------------------------------


def test_the_interpreter_goes_on_while_a_model_scores(built: Kernels) -> None:
    """A thread that counts gets its turns in the middle of a call."""
    score, request = NativeScorer(network_of(SPECS["fine"]), built), random_inputs(40_000)
    score(request)
    ticks: list[float] = []
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        for _ in range(200):
            ticks.clear()
            begun = time.perf_counter()
            score(request)
            took = time.perf_counter() - begun
            if any(0.25 < (tick - begun) / took < 0.75 for tick in list(ticks)):
                return
    finally:
        done.set()
        counter.join()
    pytest.fail("no other thread ran in the middle of any of 200 calls")


def test_threads_do_not_share_what_they_compute_in(built: Kernels) -> None:
    score = NativeScorer(network_of(SPECS["fine"]), built)
    requests = [random_inputs(64, seed) for seed in range(40)]
    alone = [score(request).numpy() for request in requests]
    order = [place for place in range(40) for _ in range(5)]
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda place: score(requests[place]).numpy(), order))
    for place, found in zip(order, together, strict=True):
        np.testing.assert_array_equal(found, alone[place])


# --- without kernels, or with another network -------------------------------------------------


def test_torch_scores_where_the_kernels_cannot(built: Kernels) -> None:
    tower, fine = network_of(SPECS["tower"]), network_of(SPECS["fine"])
    assert native_scorer(tower, None) is None
    assert native_scorer(tower, built) is not None
    assert native_scorer(fine, built) is not None
    tower.get_submodule("item_mlp").add_module("1", nn.GELU())
    assert native_scorer(tower, built) is None
    fine.double()
    assert native_scorer(fine, built) is None
    strided = network_of(SPECS["fine"])
    weight = strided.embeddings.weight.data
    strided.embeddings.weight.data = weight.T.contiguous().T
    assert native_scorer(strided, built) is None


@torch.inference_mode()
def test_a_package_scores_alike_either_way(built: Kernels, tmp_path: Path) -> None:
    expected = Expected("fine", SERVICE.name, SERVICE.fingerprint, input_spec(SERVICE))
    model = load_package(publish(tmp_path, "fine"), expected)
    native = Model(model.card, model.name, model.network, (), lambda: built)
    without = Model(model.card, model.name, model.network, (), lambda: None)
    assert native.native is not None
    assert without.native is None
    request = random_inputs(30)
    np.testing.assert_allclose(
        native.logits(request), without.logits(request), atol=SCORE_TOLERANCE, rtol=1e-4
    )


def test_weights_are_scored_by_whatever_becomes_of_their_tensor(built: Kernels) -> None:
    """The kernels read the embeddings where they lay."""
    network, request = network_of(SPECS["fine"]), random_inputs(9)
    score = NativeScorer(network, built)
    before = score(request)
    network.embeddings.weight.data = torch.zeros(1, 1)
    assert torch.equal(before, score(request))
