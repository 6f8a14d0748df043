"""What is refused before anything is parsed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from predictor.front import Front
from predictor.generation import Generations
from predictor.metrics import Metrics
from predictor.rank import RankConfig, Ranker
from tests.predictor.support import PLAN, DictStore


def asked(path: str, in_flight: int, kind: str = "http") -> tuple[list[dict[str, Any]], str]:
    """What was sent, and the metrics."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "inside"})

    async def work() -> tuple[list[dict[str, Any]], str]:
        config = RankConfig(in_flight=in_flight)
        ranker = Ranker(DictStore({}), Generations(PLAN, "ranking"), None, config)
        metrics = Metrics()
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError("the body was read")

        await Front(application, ranker, metrics)({"type": kind, "path": path}, receive, send)
        return sent, metrics.text().decode()

    return asyncio.run(work())


@pytest.mark.parametrize("model", ["rank", "aggregate"])
def test_a_full_service_refuses_inference_without_reading_its_body(model: str) -> None:
    (start, body), metrics = asked(f"/v2/models/{model}/infer", in_flight=0)
    headers = dict(start["headers"])
    assert start["status"] == 503
    assert headers[b"retry-after"] == b"1"
    assert int(headers[b"content-length"]) == len(body["body"])
    error = json.loads(body["body"])
    assert set(error) == {"error", "code", "where", "required", "got", "do"}
    assert error["required"] == "at most 0 requests at once"
    counted = f'encore_requests_total{{model="{model}",protocol="http",status="503"}} 1.0'
    assert counted in metrics


@pytest.mark.parametrize(
    ("path", "in_flight", "kind"),
    [
        ("/v2/models/rank/infer", 1, "http"),
        ("/v2/models/other/infer", 0, "http"),
        ("/v2/health/live", 0, "http"),
        ("/metrics", 0, "http"),
        ("", 0, "lifespan"),
    ],
)
def test_everything_else_goes_in(path: str, in_flight: int, kind: str) -> None:
    sent, _ = asked(path, in_flight, kind)
    assert sent == [{"type": "inside"}]
