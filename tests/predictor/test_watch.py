"""What is seen of a request: spans below the caller's, counts, a log line with its ids."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import logging
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc.aio
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from encore.logs import JsonLines, TextLines
from predictor.assembly import ServeConfig, serving
from predictor.grpc_messages import SERVICE, ModelInferRequest
from predictor.grpc_server import GrpcServer
from predictor.http import create_app
from predictor.loop_lag import LoopLag
from predictor.metrics import Metrics
from predictor.slow_log import BURST, SlowLog
from predictor.timeline import Served, Timeline, log_fields
from predictor.tracing import Tracer
from predictor.watch import Observer, Watched, WatchRequests
from schemas.errors import RequestError
from schemas.ranklog import Degraded
from schemas.status import Status
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from tests.patience import patient
from tests.predictor.collector import Collector, collecting
from tests.predictor.support import ITEMS, USERS, body, put_world

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
STAGES = {"parse", "store", "queue", "assemble", "reply"}


def values(metrics: Metrics, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """A series' samples by the values of these labels."""
    families = text_string_to_metric_families(metrics.text().decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {tuple(sample.labels[each] for each in labels): sample.value for sample in samples}


def answered(observer: Observer) -> dict[tuple[str, ...], float]:
    """Requests by model, protocol and status."""
    return values(observer.metrics, "encore_requests_total", "model", "protocol", "status")


def test_what_the_store_takes_is_known_to_admission(
    rows: RedisRowStore, predictor_url: str
) -> None:
    async def go() -> None:
        async with serving(ServeConfig(patient(predictor_url), "ranking")) as service:
            admission, store = service.ranker.admission, service.store
            assert isinstance(store, AsyncRedisRowStore)
            assert store.on_rows_read is not None
            before_s = admission.bound_s
            store.on_rows_read(5.0)
            assert admission.bound_s == pytest.approx(before_s + 0.5)

    put_world(rows)
    asyncio.run(go())


# --- traces -------------------------------------------------------------------------------------


def ask(directory: Path, url: str, watch: WatchRequests, traceparent: str) -> httpx.Response:
    """One ranked request of a whole service, which has ended when this returns."""

    async def go() -> httpx.Response:
        config = ServeConfig(
            patient(url), "ranking", packages=directory, watch=watch, timeout_ms=60_000
        )
        async with serving(config) as service:
            transport = httpx.ASGITransport(app=create_app(service))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                headers = {"traceparent": traceparent}
                return await client.post("/v2/models/rank/infer", json=body(), headers=headers)

    return asyncio.run(go())


def test_spans_of_a_request_reach_a_collector(
    rows: RedisRowStore, predictor_url: str, tmp_path: Path
) -> None:
    put_world(rows)
    with collecting() as collector:
        reply = ask(tmp_path, predictor_url, WatchRequests(collector.url, 0.0), SAMPLED)
    assert reply.status_code == 200, reply.text
    assert collector.services == {"encore"}
    root = collector.named("rank")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    facts = {each.key: each.value for each in root.attributes}
    assert facts["encore.request_id"].string_value == reply.json()["id"]
    assert facts["encore.degraded"].string_value == "no_model"
    assert facts["encore.candidates"].int_value == 21
    stages = [span for span in collector.spans if span is not root]
    assert {span.name for span in stages} == STAGES
    assert {span.parent_span_id for span in stages} == {root.span_id}
    ordered = sorted(stages, key=lambda span: int(span.start_time_unix_nano))
    assert ordered[0].start_time_unix_nano == root.start_time_unix_nano
    for before, after in itertools.pairwise(ordered):
        assert before.end_time_unix_nano == after.start_time_unix_nano
    assert ordered[-1].end_time_unix_nano == root.end_time_unix_nano


def test_the_callers_trace_comes_in_grpc_metadata(
    rows: RedisRowStore, predictor_url: str, tmp_path: Path
) -> None:
    put_world(rows)
    message = ModelInferRequest(model_name="aggregate")
    for name, values in (("user_id", USERS[:1]), ("candidate_ids", ITEMS)):
        message.inputs.add(name=name, datatype="INT64", shape=[len(values)])
        message.raw_input_contents.append(np.array(values, np.int64).tobytes())

    async def go(watch: WatchRequests) -> None:
        config = ServeConfig(patient(predictor_url), "ranking", watch=watch, timeout_ms=60_000)
        async with serving(config) as service:
            server = GrpcServer(service, "127.0.0.1", 0)
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
                metadata = (("traceparent", SAMPLED),)
                await infer(message.SerializeToString(), metadata=metadata, timeout=60)
            await server.stop(0)

    with collecting() as collector:
        asyncio.run(go(WatchRequests(collector.url, 0.0)))
    root = collector.named("aggregate")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    facts = {each.key: each.value for each in root.attributes}
    assert facts["encore.protocol"].string_value == "grpc"
    assert facts["encore.candidates"].int_value == len(ITEMS)
    assert {span.name for span in collector.spans} == {"aggregate", *STAGES}


def traced(share: float, *traceparents: str) -> tuple[Collector, list[Timeline]]:
    """Empty requests with these parents under a tracer."""
    timelines = [Timeline("rank", "grpc", traceparent) for traceparent in traceparents]
    with collecting() as collector:
        observer = Observer(Metrics(), Tracer(collector.url, share, "1"))
        for timeline in timelines:
            with Watched(observer, timeline) as watched:
                watched.begin()
        observer.close()
    return collector, timelines


def test_the_caller_decides_then_the_share() -> None:
    collector, timelines = traced(1.0, SAMPLED, UNSAMPLED, "", "no such thing")
    roots = [span for span in collector.spans if span.name == "rank"]
    traces = [timeline.trace_id for timeline in timelines]
    assert traces[:2] == [TRACE, TRACE]
    assert [span.trace_id.hex() for span in roots] == [TRACE, traces[2], traces[3]]
    assert [bool(span.parent_span_id) for span in roots] == [True, False, False]
    assert len({TRACE, *traces[2:]}) == 3
    collector, _ = traced(0.0, SAMPLED, UNSAMPLED, "")
    assert [span.trace_id.hex() for span in collector.spans if span.name == "rank"] == [TRACE]


def test_a_failed_request_is_a_span_in_error() -> None:
    with collecting() as collector:
        observer = Observer(Metrics(), Tracer(collector.url, 1.0, "1"))
        with pytest.raises(ZeroDivisionError), Watched(observer, Timeline("rank")) as watched:
            watched.begin()
            raise ZeroDivisionError
        observer.close()
    root = collector.named("rank")
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert answered(observer) == {("rank", "", "500"): 1}


def test_without_a_tracer_the_callers_trace_is_known_all_the_same() -> None:
    assert Timeline("rank", "http", SAMPLED).trace_id == TRACE
    for broken in ("", "00", f"00-{'0' * 32}-{PARENT}-01", TRACE):
        assert Timeline("rank", "http", broken).trace_id == ""


# --- counts -------------------------------------------------------------------------------------


def served(degraded: Degraded, users: list[int], items: list[list[int]]) -> Served:
    """users: (Vu,) statuses of views u0, u1, …; items: (N, Vi) of i0, i1, …"""
    program = SimpleNamespace(
        user_views=[SimpleNamespace(name=f"u{at}") for at in range(len(users))],
        item_views=[SimpleNamespace(name=f"i{at}") for at in range(len(items[0]))],
    )
    assembled = SimpleNamespace(
        user_status=np.array(users, np.uint8), item_status=np.array(items, np.uint8), newest_ms=1
    )
    return Served(cast(Any, program), cast(Any, assembled), degraded, 2_001)


def test_rows_are_counted_by_view_and_status() -> None:
    metrics, timeline = Metrics(), Timeline("rank", "grpc")
    items: list[list[int]] = [
        [Status.PRESENT, Status.CORRUPT],
        [Status.NOT_FOUND, Status.PRESENT],
        [Status.PRESENT, Status.PRESENT],
    ]
    timeline.served = served(Degraded.CORRUPT_ROWS, [Status.STALE], items)
    metrics.observe(timeline, 200)
    assert values(metrics, "encore_rows_total", "view", "status") == {
        ("u0", "stale"): 1,
        ("i0", "present"): 2,
        ("i0", "not_found"): 1,
        ("i1", "present"): 2,
        ("i1", "corrupt"): 1,
    }
    assert values(metrics, "encore_degraded_total", "reason") == {("corrupt_rows",): 1}
    ages = values(metrics, "encore_newest_event_age_seconds_bucket", "le")
    assert (ages["1.0",], ages["5.0",]) == (0, 1)


def test_refusals_are_counted_by_their_place() -> None:
    observer = Observer(Metrics())
    for where in ("inputs.user_id", "inputs[3]", "request"):
        with pytest.raises(RequestError), Watched(observer, Timeline("rank", "http")):
            raise RequestError(where, required="this", got="that", status=503)
    assert values(observer.metrics, "encore_refused_total", "where") == {
        ("inputs",): 2,
        ("request",): 1,
    }
    assert answered(observer) == {("rank", "http", "503"): 3}
    assert values(observer.metrics, "encore_request_seconds_count", "model", "protocol") == {}


def test_callers_cannot_make_up_series() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.observe(Timeline("rank", "http"), 400, f"made_up_{number}")
    refused = values(metrics, "encore_refused_total", "where")
    assert len(refused) < 70
    assert sum(refused.values()) == 1000


def test_a_caller_that_left_is_counted() -> None:
    observer = Observer(Metrics())
    with pytest.raises(asyncio.CancelledError), Watched(observer, Timeline("rank", "http")):
        raise asyncio.CancelledError
    assert answered(observer) == {("rank", "http", "499"): 1}


def test_histograms_are_prometheus_own() -> None:
    metrics, timeline = Metrics(), Timeline("rank", "http")
    timeline.laps = [("store", 0.0001), ("store", 0.00011), ("store", 7.0)]
    metrics.observe(timeline, 200)
    buckets = values(metrics, "encore_stage_seconds_bucket", "model", "stage", "le")
    assert buckets["rank", "store", "0.0001"] == 1
    assert buckets["rank", "store", "0.0002"] == 2
    assert buckets["rank", "store", "2.0"] == 2
    assert buckets["rank", "store", "+Inf"] == 3
    assert values(metrics, "encore_stage_seconds_count", "model", "stage") == {("rank", "store"): 3}
    total = values(metrics, "encore_request_seconds_sum", "model", "protocol")["rank", "http"]
    assert total == pytest.approx(7.00021)


def test_a_loop_that_is_held_up_is_seen() -> None:
    metrics = Metrics()

    async def go() -> None:
        watching = asyncio.create_task(LoopLag(every_s=0.001).run(metrics.observe_loop))
        await asyncio.sleep(0.01)
        time.sleep(0.25)  # what nobody should do here
        await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(go())
    late = values(metrics, "encore_loop_lag_seconds_bucket", "le")
    assert late["+Inf",] > late["0.2",] >= 0


# --- log lines ----------------------------------------------------------------------------------


class Lines:
    """The lines of a logger under a formatter."""

    def __init__(self, formatter: logging.Formatter, name: str) -> None:
        self._stream = io.StringIO()
        self._handler = logging.StreamHandler(self._stream)
        self._handler.setFormatter(formatter)
        self._logger = logging.getLogger(name)

    def __enter__(self) -> Lines:
        self._logger.addHandler(self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self._handler)

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


def test_lines_of_a_request_carry_its_ids() -> None:
    timeline, request = Timeline("rank", "http", SAMPLED), uuid.uuid4()
    log = logging.getLogger("tests.lines")
    for formatter in (TextLines(log_fields), JsonLines(log_fields)):
        with Lines(formatter, log.name) as written:
            log.error("before")
            with Watched(Observer(Metrics()), timeline):
                timeline.begin(request)
                log.error("within", extra={"fields": {"rows": 3}})
        before, within = written.lines
        assert TRACE not in before
        if isinstance(formatter, JsonLines):
            line = json.loads(within)
            del line["time"]
            assert line == {
                "level": "error",
                "logger": "tests.lines",
                "message": "within",
                "request_id": str(request),
                "trace_id": TRACE,
                "rows": 3,
            }
        else:
            assert within.endswith(f"within [request_id={request} trace_id={TRACE}]")


@pytest.mark.parametrize(
    ("given", "word"), [("request-7", "request-7"), ("a b]\nERROR", r"'a b]\nERROR'")]
)
def test_lines_of_a_request_carry_its_callers_id(given: str, word: str) -> None:
    """A caller's text begins no line of its own."""
    timeline, request = Timeline("rank"), uuid.uuid4()
    log = logging.getLogger("tests.lines")
    for formatter in (TextLines(log_fields), JsonLines(log_fields)):
        with Lines(formatter, log.name) as written, Watched(Observer(Metrics()), timeline):
            timeline.begin(request)
            timeline.caller_id = given
            log.error("within")
        [line] = written.lines
        if isinstance(formatter, JsonLines):
            assert json.loads(line)["caller_id"] == given
        else:
            assert line.endswith(f"within [request_id={request} caller_id={word}]")


def test_a_json_line_holds_its_traceback() -> None:
    log = logging.getLogger("tests.lines")
    with Lines(JsonLines(), log.name) as written:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.exception("failed")
    (line,) = written.lines
    assert "ValueError: two\nlines" in json.loads(line)["traceback"]


def slow_lines(slow_ms: float, requests: list[tuple[float, float, Degraded]]) -> list[Any]:
    """What the log says of requests (ended at s, took s, degraded)."""
    slow_log = SlowLog(slow_ms)
    with Lines(JsonLines(), "encore.requests") as written:
        for ended_s, took_s, degraded in requests:
            timeline = Timeline("rank", "http")
            timeline.laps, timeline.last_s = [("store", took_s)], ended_s
            timeline.served = served(degraded, [0], [[0]])
            slow_log.report(timeline)
    return [json.loads(line) for line in written.lines]


def test_slow_and_degraded_requests_get_a_line() -> None:
    requests = [
        (100.0, 0.009, Degraded(0)),
        (101.0, 0.011, Degraded(0)),
        (102.0, 0.001, Degraded.STORE_TIMEOUT | Degraded.NO_FINE_MODEL),
        (103.0, 0.001, Degraded.NO_MODEL),
    ]
    slow, degraded = slow_lines(10.0, requests)
    assert (slow["total_ms"], slow["stages_ms"], slow["degraded"]) == (11.0, {"store": 11.0}, "")
    assert degraded["degraded"] == "store_timeout"
    (alone,) = slow_lines(0.0, requests)
    assert alone["degraded"] == "store_timeout"


def test_an_outage_does_not_fill_the_disk() -> None:
    storm = [(100.0 + at / 1000, 0.5, Degraded.STORE_ERROR) for at in range(5_000)]
    lines = slow_lines(0.0, [*storm, (200.0, 0.5, Degraded.STORE_ERROR)])
    assert BURST <= len(lines) <= BURST + 7
    assert sum(line["kept_back"] for line in lines) + len(lines) == 5_001
