"""Serve, log, forget, rebuild: rows → tensors → scores → record → Parquet → tensors → scores."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aggregation.tensors import Tensors
from audit.join import JoinedLog, JoinQuery, LogPaths, join_log
from audit.rebuild import rebuild, rebuilt_tensors
from predictor.cascade import Cascade, CascadeConfig
from predictor.generation import Generations, ServingGeneration
from predictor.package import load_package
from predictor.record import LogEntry, Query, encode_entry
from predictor.spec import KINDS
from schemas.ranklog import Degraded, RankRecord, decode_record
from schemas.status import Status
from tests.audit.logs import write_actions, write_records
from tests.predictor.support import ITEMS, NOW_MS, PLAN, USERS, publish, world

REQUESTS = 40


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> ServingGeneration:
    generations, root = Generations(PLAN, "ranking"), tmp_path_factory.mktemp("packages")
    for kind in KINDS:
        model = load_package(publish(root, kind), generations.current.expected(kind))
        generations.use_models({kind: model})
    return generations.current


def serve(
    generation: ServingGeneration, number: int, fine_limit: int
) -> tuple[RankRecord, Tensors]:
    """One request over rows of which some are missing, damaged, or could not be read."""
    rng = np.random.default_rng(number)
    items = rng.choice([*ITEMS, 5, 6], rng.integers(1, 25), replace=False)
    user, program, rows = int(rng.choice([*USERS, 404])), generation.program, world()
    raw = [rows.get(key) for key in program.keys(user, items)]
    raw = [b"\xff" + row[1:] if row and rng.random() < 0.1 else row for row in raw]
    failed = Status.TIMEOUT if number % 10 == 9 else None
    now_ms = NOW_MS + int(rng.integers(0, 10_000_000))
    assembled = program.assemble(raw, user, items, now_ms, failed)
    cascade = Cascade(generation.coarse, generation.fine, CascadeConfig(fine_limit, 0.5, 2))
    ranking = cascade.rank(assembled.tensors, 5, seed=number)
    query = Query(uuid.UUID(int=number), user, items, now_ms, now_ms, 5, 1_000.0)
    entry = LogEntry(query, generation, assembled, ranking)
    scored = replace(assembled.tensors, item_slots=assembled.tensors.item_slots[ranking.fine])
    return decode_record(encode_entry(entry)), scored


@pytest.fixture(scope="module")
def logged(
    generation: ServingGeneration, tmp_path_factory: pytest.TempPathFactory
) -> tuple[JoinedLog, dict[str, Tensors]]:
    """A log of all kinds of requests, and the tensors that the models were given."""
    data_dir = tmp_path_factory.mktemp("log")
    coarse_only = replace(generation, fine=None)
    blind = replace(generation, fine=None, coarse=None)
    served = [
        serve((generation, generation, coarse_only, blind)[n % 4], n, (1000, 6)[n % 2])
        for n in range(REQUESTS)
    ]
    write_records(data_dir, generation.program, [record for record, _ in served])
    write_actions(data_dir, [])
    query = JoinQuery("ranking", generation.service.fingerprint)
    log = join_log(LogPaths.under(data_dir), query)
    return log, {str(record.request_id): tensors for record, tensors in served}


def test_every_scored_tensor_is_rebuilt_bit_for_bit(
    generation: ServingGeneration, logged: tuple[JoinedLog, dict[str, Tensors]]
) -> None:
    log, served = logged
    seen = 0
    for request_id, again in rebuilt_tensors(log, generation.program):
        before = served[request_id]
        seen += 1
        for name in ("user_slots", "item_slots"):
            left, right = getattr(again, name), getattr(before, name)
            assert left.dtype == right.dtype == np.int32
            assert np.array_equal(left, right)
        assert again.sequences.keys() == before.sequences.keys()
        for name in before.sequences:
            assert np.array_equal(again.sequences[name], before.sequences[name])
            assert np.array_equal(again.lengths[name], before.lengths[name])
    assert seen == REQUESTS
    assert any(tensors.item_slots.any() for tensors in served.values())


def test_scores_and_tensors_agree(
    generation: ServingGeneration, logged: tuple[JoinedLog, dict[str, Tensors]]
) -> None:
    log, served = logged
    assert generation.coarse and generation.fine
    models = (generation.coarse, generation.fine)
    report = rebuild(log, generation.program, models, served)
    assert report.mismatches == ()
    assert report.requests == REQUESTS
    tensors_only = rebuild(log, generation.program, served=served)
    ids = sum(
        t.user_slots.size
        + t.item_slots.size
        + sum(s.size + t.lengths[name].size for name, s in t.sequences.items())
        for t in served.values()
    )
    assert tensors_only.values == ids
    coarse, fine = (
        np.count_nonzero(~np.isnan(log.candidates.column(name).to_numpy()))
        for name in ("coarse_score", "fine_click")
    )
    # Four scores of the fine model (three tasks, their sum), one of the two-tower.
    assert report.values - ids == coarse + 4 * fine


def test_what_differs_is_found(
    generation: ServingGeneration, logged: tuple[JoinedLog, dict[str, Tensors]]
) -> None:
    log, served = logged
    assert generation.fine
    request_id, before = next(iter(served.items()))
    slots = before.item_slots.copy()
    slots[0, 0] += 3
    wrong = {request_id: replace(before, item_slots=slots)}
    (found,) = rebuild(log, generation.program, served=wrong).mismatches
    assert (found.request_id, found.part, found.count, found.worst) == (
        request_id,
        "item_slots",
        1,
        3.0,
    )
    fewer = {request_id: replace(before, item_slots=before.item_slots[:0])}
    (found,) = rebuild(log, generation.program, served=fewer).mismatches
    assert found.worst == float("inf")
    at = log.candidates.column_names.index("fine_click")
    clicks = log.candidates.column("fine_click").to_numpy().copy()
    place = int(np.flatnonzero(~np.isnan(clicks))[0])
    clicks[place] += 0.01
    changed = replace(log, candidates=log.candidates.set_column(at, "fine_click", [clicks]))
    (found,) = rebuild(changed, generation.program, [generation.fine]).mismatches
    assert (found.part, found.count) == ("fine_click", 1)
    assert found.worst == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("lacking", "compared"),
    [
        (Degraded.FINE_SKIPPED, {"coarse_score"}),
        (Degraded.DEADLINE, set()),
        (Degraded.MODEL_ERROR, set()),
    ],
)
def test_a_model_that_had_no_time_disagrees_with_nobody(
    generation: ServingGeneration, tmp_path: Path, lacking: Degraded, compared: set[str]
) -> None:
    """The request names the packages of its generation, and has no score of them."""
    served, _ = serve(generation, 1, 1_000)
    n, nan = len(served.fine_ids), np.full(len(served.fine_ids), np.nan, np.float32)
    coarse = served.coarse_scores if compared else nan
    write_records(
        tmp_path,
        generation.program,
        [
            replace(
                served,
                degraded=int(lacking),
                coarse_scores=coarse,
                final_scores=coarse,
                task_scores=np.zeros((n, 0), np.float32),
            )
        ],
    )
    write_actions(tmp_path, [])
    query = JoinQuery("ranking", generation.service.fingerprint)
    log = join_log(LogPaths.under(tmp_path), query)
    assert generation.coarse and generation.fine
    models = (generation.coarse, generation.fine)
    report = rebuild(log, generation.program, models)
    assert (report.mismatches, report.values) == ((), n * len(compared))
    at = log.requests.column_names.index("degraded")
    silent = log.requests.set_column(at, "degraded", pa.array([0], pa.uint32()))
    found = rebuild(replace(log, requests=silent), generation.program, models).mismatches
    assert {each.part for each in found} >= {"fine_click", "score"}
