"""A replay notices rows that know the future, and waits for a service that is busy."""

from __future__ import annotations

import asyncio
import uuid

import numpy as np
import pytest

from encore.kuairand import Page
from encore.ranking import RankReply, RankRequest
from encore.replay import BUSY, check_clock, ranked
from schemas.errors import RequestError, StreamError

PAGE = Page(1, 2, 7, 1_000, np.array([5, 6]))


def reply(newest_ms: int) -> RankReply:
    return RankReply(uuid.UUID(int=1), {}, {"newest_ms": newest_ms})


@pytest.mark.parametrize("newest_ms", [0, 999, 1_000])
def test_rows_of_the_past_are_fine(newest_ms: int) -> None:
    check_clock(PAGE, reply(newest_ms))


def test_a_row_newer_than_the_clock_is_an_error() -> None:
    with pytest.raises(StreamError, match="no newer than the request's clock, 1000, got an event"):
        check_clock(PAGE, reply(1_001))


class Refusing:
    """Refuses so many requests with a status before it answers one."""

    def __init__(self, times: int, status: int = BUSY) -> None:
        self.left, self.status = times, status

    async def rank(self, request: RankRequest) -> RankReply:
        if self.left:
            self.left -= 1
            raise RequestError("request", required="a turn", got="none", status=self.status)
        return reply(0)


def test_a_busy_service_is_asked_again() -> None:
    assert asyncio.run(ranked(Refusing(3), PAGE)) == reply(0)


@pytest.mark.parametrize("service", [Refusing(1, 400), Refusing(1_000)])
def test_another_refusal_ends_a_replay_and_so_does_one_without_end(service: Refusing) -> None:
    with pytest.raises(RequestError, match="needs a turn"):
        asyncio.run(ranked(service, PAGE, patience_s=0.2))
    assert service.left == 0 or 996 <= service.left < 1_000, "the pause doubles"
