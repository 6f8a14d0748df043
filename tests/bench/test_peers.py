"""Peers answer what we answer: every format and every way of serving, value for value."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from bench.format import batch_of, view_of
from bench.peers.codecs import (
    Codec,
    EncoreRows,
    JsonRows,
    ProtoMap,
    equal,
    msgpack_rows,
    payload_bytes,
)
from bench.peers.raw_mget import RawMget
from bench.samples import FLOATS, INTS, sample_users
from bench.server import own_store
from schemas.layout import layout_of
from store.redis_store import RedisRowStore
from tests.streams.support import patient

ROWS = 40


@pytest.mark.parametrize("suffix", ["", "_seq"])
@pytest.mark.parametrize("own_lengths", [False, True])
def test_formats_hold_the_same_values(suffix: str, own_lengths: bool) -> None:
    sample = sample_users(ROWS)
    layout = layout_of(view_of(suffix))
    batch = batch_of(sample, layout, own_lengths)
    msgpack = msgpack_rows()
    codecs: list[Codec] = [EncoreRows(layout, sample.ids), ProtoMap(), JsonRows()]
    for codec in codecs if msgpack is None else [*codecs, msgpack]:
        decoded = codec.as_dicts(codec.decode(codec.encode(batch)))
        assert equal(batch.dicts, decoded, wrapped=codec.name == "protomap"), codec.name


def test_comparison_sees_a_difference() -> None:
    assert equal([{"a": 1, "b": None}], [{"a": 1}])
    assert not equal([{"a": 1}], [{"a": 2}])
    assert not equal([{"a": 0}], [{"a": None}])
    assert not equal([{"a": None}], [{"a": 0}])
    assert not equal([{"a": [1]}], [{"a": [1, 0]}])
    assert equal([{"a": 1, "b": []}], [{"a": [1]}], wrapped=True)
    assert not equal([{"a": 1}], [{"a": [2]}], wrapped=True)


def test_samples_are_real_and_distinct() -> None:
    sample = sample_users(ROWS)
    assert len(np.unique(sample.ids)) == ROWS
    assert sample.full["last_videos"].shape == (ROWS, 50)
    assert (sample.own_lengths > 0).all()
    assert sum(int(null.sum()) for null in sample.null.values()) > 0
    assert all(len(np.unique(sample.scalars[name])) > 1 for name in INTS[:4])
    assert payload_bytes(batch_of(sample, layout_of(view_of(""))).rows) == 80
    assert len(INTS) + len(FLOATS) == 20


def test_raw_mget_answers_as_the_store(valkey: str) -> None:
    host, port = valkey.removeprefix("redis://").removesuffix("/0").split(":")
    raw = RawMget(host, int(port))
    with RedisRowStore(patient(valkey)) as store:
        store.put_text("raw:a", "x" * 300_000)
        keys = ["raw:a", "raw:absent", "raw:a"]
        assert raw.send(raw.pack(keys)) == store.read(keys)
    raw.close()


@pytest.mark.slow
def test_feast_rows_hold_the_same_values() -> None:
    from bench.peers.feast_rows import FeastRows

    sample = sample_users(ROWS)
    layout = layout_of(view_of("_seq"))
    batch = batch_of(sample, layout)
    with own_store() as address:
        feast = FeastRows(layout.fields, *address)
        encoded = feast.encode(batch)
        assert equal(batch.dicts, feast.as_dicts(feast.decode(encoded)))
        keys = feast.write(sample.ids.tolist(), batch)
        assert feast.read_back(keys) == encoded


@pytest.mark.slow
def test_feast_serves_the_same_values_and_tensors() -> None:
    from bench import aggregate
    from bench.cached import filled_cache
    from bench.peers.feast_online import FeastOnline
    from bench.workload import load_workload

    with (
        own_store() as (host, port),
        tempfile.TemporaryDirectory() as directory,
        RedisRowStore(f"redis://{host}:{port}/0") as store,
        load_workload(store, 5, 30) as work,
        filled_cache(work, store, Path(directory) / "cache") as cached,
    ):
        feast = FeastOnline(work.program, (host, port), Path(directory), work.users_file)
        raw = RawMget(host, port)
        contenders = aggregate.Contenders(work, store, cached, feast, raw)
        aggregate._fill_feast(contenders)
        requests = work.requests(3, 10, seed=0)
        assert all(aggregate._equal(contenders, request) for request in requests)
        other = (requests[0][0], requests[0][1][::-1].copy())
        ours = contenders.ours(requests[0]).item_values
        assert feast.blocks(feast.split(other))[1].tobytes() != ours.tobytes()
        assert any((contenders.ours((int(user), other[1]))).newest_ms for user in work.users)
        raw.close()
