"""The boards, the alerts and the scrape configuration, against what running processes expose."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from encore.local import free_port, start_broker
from encore.settings import Settings
from encore.stream_metrics import tell
from predictor.assembly import ServeConfig, serving
from predictor.freshness import FreshnessConfig
from predictor.grpc_server import GrpcServer
from predictor.http import create_app
from predictor.spool import SpoolConfig
from schemas.names import generation_group
from store.redis_store import RedisRowStore
from streams.admin import ensure_topics
from streams.config import StreamConfig
from tests.patience import patient
from tests.predictor.support import NOW_MS, PLAN, body, put_world

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))[
    "services"
]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
RULES = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text("utf-8"))
SCRAPED = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))
#: Of the supervisor of several serving processes, which tells them itself.
SUPERVISORS = {
    "encore_worker_up",
    "encore_worker_restarts_total",
    "encore_cache_writer_up",
    "encore_cache_writer_restarts_total",
}
VIEW = PLAN.view("user_activity")
GROUP = ("encore", VIEW.name, VIEW.generation)
NAME = re.compile(r"\bencore_\w+")
Exposed = dict[str, set[frozenset[str]]]  # series → label names of its samples


def exposed(text: str) -> Exposed:
    found: Exposed = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).add(frozenset(sample.labels))
    return found


@pytest.fixture(scope="module")
def service(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a service that ranked, refused, and asked a cache."""
    directory, url = tmp_path_factory.mktemp("service"), valkey.removesuffix("/0") + "/6"
    with RedisRowStore(patient(url)) as store:
        put_world(store)
        store.put_progress(VIEW.source, generation_group(*GROUP), {0: (1, 2, NOW_MS)})

    async def go() -> str:
        spool = SpoolConfig(directory / "spool")
        config = ServeConfig(
            patient(url),
            "ranking",
            spool=spool,
            timeout_ms=60_000,
            item_cache=directory,
            freshness=FreshnessConfig("encore", "encore-items", 1, 0, poll_s=0.01),
        )
        async with serving(config) as running:
            server = GrpcServer(running, "127.0.0.1", 0)
            running.observer.metrics.readings.grpc(lambda: server.narrow)
            await server.start()
            transport = httpx.ASGITransport(app=create_app(running))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await client.post("/v2/models/rank/infer", json=body())
                await client.post("/v2/models/rank/infer", json=body(candidates=[1, 1]))
                text = ""
                async with asyncio.timeout(60):
                    while "encore_view_watermark_seconds{" not in text:
                        await asyncio.sleep(0.02)
                        text = (await client.get("/metrics")).text
            await server.stop(0)
            return text

    return asyncio.run(go())


@pytest.fixture(scope="module")
def streams(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of `encore stream metrics`."""
    directory, url = tmp_path_factory.mktemp("streams"), valkey.removesuffix("/0") + "/6"
    server = start_broker(directory)
    config = StreamConfig(server.address, url, directory)
    ensure_topics(server.address, config.topics)
    port = free_port()

    def page() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            return str(reply.read().decode())

    async def go() -> str:
        task = asyncio.create_task(tell(config, "127.0.0.1", port))
        text = ""
        async with asyncio.timeout(60):
            while "encore_stream_lag_messages{" not in text:
                await asyncio.sleep(0.05)
                assert not task.done()
                text = await asyncio.to_thread(page)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return text

    yield asyncio.run(go())
    server.child.kill()


def queries() -> dict[str, str]:
    """Every query of the boards and the rules, by where it stands."""
    found = {}
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel.get("targets", []):
                found[f"{path.name} {panel['title']} {target['refId']}"] = target["expr"]
    for group in RULES["groups"]:
        found |= {f"alert {rule['alert']}": rule["expr"] for rule in group["rules"]}
    return found


def test_boards_and_alerts_name_what_processes_expose(service: str, streams: str) -> None:
    known = {name for page in (service, streams) for name in exposed(page)} | SUPERVISORS
    types = {  # of counters and histograms that nothing happened to yet
        f"{line.split()[2]}{end}"
        for line in (service + streams).splitlines()
        if line.startswith("# TYPE encore_")
        for end in ("", "_bucket", "_sum", "_count")
    }
    for place, query in queries().items():
        assert set(NAME.findall(query)) <= known | types, place
    supervisor = (ROOT / "encore" / "serving.py").read_text("utf-8")
    assert all(name in supervisor for name in SUPERVISORS)


def test_every_series_is_on_a_board(service: str, streams: str) -> None:
    shown = {name for path in DASHBOARDS for name in NAME.findall(path.read_text("utf-8"))}
    families = {
        line.split()[2]
        for line in (service + streams).splitlines()
        if line.startswith("# TYPE enc")
    }
    assert {each for each in families if not any(each in name for name in shown)} == set()


def test_queries_ask_for_labels_that_are_there(service: str, streams: str) -> None:
    """`by (…)` and `{label=…}` of a query are labels of its series, or of the scrape."""
    labels = {
        name: frozenset.union(*found)
        for page in (service, streams)
        for name, found in exposed(page).items()
    }
    for place, query in queries().items():
        named = {name for name in NAME.findall(query) if name in labels}
        if not named or len(named) != len(set(NAME.findall(query))):
            continue
        asked = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", query))
        for group in re.findall(r"by \(([^)]*)\)", query):
            asked |= {label.strip() for label in group.split(",")}
        everything = frozenset.union(*(labels[name] for name in named)) | {"job", "instance"}
        assert asked <= everything, place


def test_a_page_tells_what_happened(service: str) -> None:
    families = text_string_to_metric_families(service)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert samples["encore_requests_total", "rank", "http", "200"] == 1
    assert samples["encore_requests_total", "rank", "http", "400"] == 1
    assert samples["encore_refused_total", "inputs"] == 1
    assert samples["encore_breaker_state", "closed"] == 1
    assert samples["encore_log_records_total", "logged"] + samples["encore_log_pending",] == 1
    assert samples["encore_in_flight",] == 0
    assert samples["encore_view_watermark_seconds", VIEW.name] == NOW_MS / 1000


def test_panels_have_numbers_of_their_own() -> None:
    boards = [json.loads(path.read_text("utf-8")) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len(boards) == 2
    for board in boards:
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_alerts_say_how_bad_it_is_and_where_to_look() -> None:
    for group in RULES["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert set(rule["annotations"]) == {"summary", "look"}
            for name in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
                assert name in rule["expr"], rule["alert"]


def test_grafana_finds_its_source_and_its_boards() -> None:
    provisioning = GRAFANA / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text("utf-8"))
    provider = yaml.safe_load((provisioning / "dashboards" / "encore.yml").read_text("utf-8"))
    (prometheus,) = source["datasources"]
    assert prometheus["url"] == "http://prometheus:9090"
    for path in DASHBOARDS:
        panels = json.loads(path.read_text("utf-8"))["panels"]
        sources = {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"}
        assert sources == {prometheus["uid"]}
    mounts = [volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"]]
    directory = provider["providers"][0]["options"]["path"]
    assert ["./deploy/grafana/dashboards", directory] in mounts
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in {f"{directory}/{path.name}" for path in DASHBOARDS}


def test_prometheus_scrapes_the_processes_that_have_a_page() -> None:
    ports = {
        "serve": SERVICES["service"]["environment"]["ENCORE_METRICS_PORT"],
        "stream metrics": Settings.model_fields["stream_metrics_port"].default,
    }
    found = {}
    for job in SCRAPED["scrape_configs"]:
        ((target,),) = [each["targets"] for each in job["static_configs"]]
        host, port = target.split(":")
        command = " ".join(SERVICES[host]["command"])
        found[job["job_name"]] = command
        assert int(port) == ports[command]
        assert job.get("metrics_path", "/metrics") == "/metrics"
    assert found == {"service": "serve", "streams": "stream metrics"}
    named = {name for query in queries().values() for name in re.findall(r'job="(\w+)"', query)}
    assert named <= set(found)


def test_prometheus_has_its_rules() -> None:
    mounts = [volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"]]
    for name in SCRAPED["rule_files"]:
        assert [f"./deploy/{name}", f"/etc/prometheus/{name}"] in mounts
