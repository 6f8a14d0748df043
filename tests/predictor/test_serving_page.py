"""docs/serving.md: its examples run against a server, its table of refusals is the code's."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from predictor.grpc_server import _CODES, code_of
from schemas.errors import RequestError
from tests.predictor.support import RunningServer
from tests.test_docs import table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.S)
CONSOLE = re.findall(r"```console\n\$ (.*?)```", PAGE, re.S)


def here(example: str, running: RunningServer) -> str:
    """With the addresses of this test's server, and the time that a busy machine may need."""
    changes = {
        "127.0.0.1:8080": running.client.base_url.netloc.decode(),
        "127.0.0.1:8090": running.grpc_address,
        "timeout_ms=2000": "timeout_ms=30000",
        '"timeout": 100': '"timeout": 10000',
    }
    for old, new in changes.items():
        example = example.replace(old, new)
    return example


def test_there_are_examples() -> None:
    assert (len(PYTHON), len(CONSOLE)) == (4, 1)


def test_python(running: RunningServer) -> None:
    """One process for all of them: they share nothing but the server."""
    code = "\n".join(here(example, running) for example in PYTHON)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    page, shape, firsts, by_http, *others = ended.stdout.splitlines()
    assert re.match(r"\[\d+ +\d+\] \[.*\] \(.*\) [0-9a-f-]{36}", page)
    assert re.match(r"\(3, \d+\)", shape)
    assert len(firsts.split(",")) == 2
    assert by_http == "(2,)"
    assert len(others) == 2
    assert others[0] == others[1], "both protocols"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(running: RunningServer) -> None:
    command = shlex.split(here(CONSOLE[0], running))
    answer = subprocess.run(command, capture_output=True, check=True).stdout
    outputs = {each["name"]: each["data"] for each in json.loads(answer)["outputs"]}
    assert len(outputs["page_ids"]) == 2
    assert set(outputs["page_ids"]) < {5239, 17, 880}


def test_the_codes_are_the_servers() -> None:
    rows = table("docs/serving.md", "HTTP")
    told = {(int(http), grpc) for http, grpc, _ in rows if http}
    assert [grpc for http, grpc, _ in rows if not http] == ["CANCELLED"]  # gRPC's own, unseen by us
    assert {(status, code.name) for status, code in _CODES.items()} <= told
    for where, code in (("request", "RESOURCE_EXHAUSTED"), ("views.users", "UNAVAILABLE")):
        refused = RequestError(where, required="less", got="more", status=503)
        assert code_of(refused).name == code
        assert (503, code) in told
