"""What the demo asks of the running stack besides replays."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow.parquet as pq

from audit.join import LogPaths
from encore import loops
from encore.kuairand import Page
from encore.ranking import RankClient, RankRequest
from encore.settings import Settings
from predictor.spec import Kind
from schemas.errors import LocalError

SWAP_TIMEOUT_S: Final = 60.0
ARCHIVE_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.2

#: The reply's parameter that names the serving package of each kind.
VERSION_OF: Final[dict[Kind, str]] = {"two_tower": "coarse_version", "fine": "fine_version"}


@dataclass(frozen=True, slots=True)
class Swap:
    """Ranking while packages are taken over. answered: requests sent and answered, all of them;
    seconds: until both packages served; slowest_ms: the slowest reply, seen by the client."""

    answered: int
    seconds: float
    slowest_ms: float
    versions: dict[str, str]


def rank_during_swap(
    url: str,
    pages: Sequence[Page],
    wanted: Mapping[Kind, str],
    note: Callable[[int, int], None],
) -> Swap:
    """Rank pages one after the other, under new request ids, until `wanted` (kind → package name)
    serves. note: told how many of how many packages serve.

    Raises RequestError for a request that is not answered, LocalError after a minute.
    """
    names = {VERSION_OF[kind]: name for kind, name in wanted.items()}
    return loops.run(_rank_until, url, pages, names, note)


async def _rank_until(
    url: str,
    pages: Sequence[Page],
    wanted: Mapping[str, str],
    note: Callable[[int, int], None],
) -> Swap:
    began, answered, slowest_s = time.monotonic(), 0, 0.0
    async with RankClient(url) as client:
        while True:
            sent = time.monotonic()
            reply = await client.rank(_again(pages[answered % len(pages)]))
            slowest_s = max(slowest_s, time.monotonic() - sent)
            answered += 1
            serving = {name: str(reply.parameters.get(name, "")) for name in wanted}
            note(sum(serving[name] == wanted[name] for name in wanted), len(wanted))
            if serving == wanted:
                return Swap(answered, time.monotonic() - began, slowest_s * 1000, serving)
            if time.monotonic() - began > SWAP_TIMEOUT_S:
                break
            await asyncio.sleep(0.005)
    raise LocalError(
        "serve.packages",
        required=f"{', '.join(wanted.values())} to serve within {SWAP_TIMEOUT_S:g} s",
        got=", ".join(serving.values()) or "none",
        do="read run/serve.log",
    )


def _again(page: Page) -> RankRequest:
    return RankRequest(
        uuid.uuid4(), page.user_id, tuple(page.candidates.tolist()), now_ms=page.time_ms
    )


def served_tensors(url: str, page: Page) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a page by name: (datatype, shape). Raises RequestError."""

    async def ask() -> dict[str, tuple[str, tuple[int, ...]]]:
        async with RankClient(url) as client:
            return await client.shapes(_again(page))

    return loops.run(ask)


def wait_archived(settings: Settings, requests: int, note: Callable[[int], None]) -> None:
    """Return once the Parquet log holds that many requests; note is told how many it does.

    Raises LocalError after a minute.
    """
    began = time.monotonic()
    while True:
        found = _archived(settings)
        note(min(found, requests))
        if found >= requests:
            return
        if time.monotonic() - began > ARCHIVE_TIMEOUT_S:
            raise LocalError(
                "rank log",
                required=f"{requests:,} requests in Parquet within {ARCHIVE_TIMEOUT_S:g} s",
                got=f"{found:,}",
                do="read run/serve.log, run/ship.log and run/sink.log",
            )
        time.sleep(POLL_S)


def _archived(settings: Settings) -> int:
    """Rows of the request files; the sink gives a file its name when it is complete."""
    files = LogPaths.under(settings.data_dir).requests.rglob("*.parquet")
    return sum(pq.read_metadata(file).num_rows for file in files)
