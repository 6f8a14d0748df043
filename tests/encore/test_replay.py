"""A replay notices rows that know the future."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from encore.kuairand import Page
from encore.ranking import RankReply
from encore.replay import check_clock
from schemas.errors import StreamError

PAGE = Page(1, 2, 7, 1_000, np.array([5, 6]))


def reply(newest_ms: int) -> RankReply:
    return RankReply(uuid.UUID(int=1), {}, {"newest_ms": newest_ms})


@pytest.mark.parametrize("newest_ms", [0, 999, 1_000])
def test_rows_of_the_past_are_fine(newest_ms: int) -> None:
    check_clock(PAGE, reply(newest_ms))


def test_a_row_newer_than_the_clock_is_an_error() -> None:
    with pytest.raises(StreamError, match="no newer than the request's clock, 1000, got an event"):
        check_clock(PAGE, reply(1_001))
