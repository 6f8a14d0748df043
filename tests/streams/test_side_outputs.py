from __future__ import annotations

import asyncio

import numpy as np
import pytest

from schemas.actions import decode_batch
from schemas.errors import ActionError, StreamError, TooLargeError
from schemas.names import HEADER_CODE, HEADER_LEFT_OUT, HEADER_REASON, HEADER_SOURCE
from streams.folding import OutsideActions
from streams.messages import DeadLetter
from streams.side_outputs import AT_ONCE, SideOutputs
from tests.streams.support import T0, record, some_actions
from tests.streams.test_folding import run_of


class Broker:
    """Confirms each message a moment later; fails at the message number `fail_at`. most_bytes: that
    it takes as a value, or as a key."""

    def __init__(self, fail_at: int = -1, most_bytes: int = 1_000) -> None:
        self.most_bytes = most_bytes
        self.sent: list[tuple[str, bytes | None, dict[str, bytes]]] = []
        self.under_way = self.most = 0
        self.fail_at = fail_at

    async def __call__(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: dict[str, bytes],
        partition: int | None = None,
    ) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.002)
        self.under_way -= 1
        assert key is not None or value is not None, "aiokafka refuses it"
        if max(len(key or b""), len(value or b"")) > self.most_bytes:
            raise TooLargeError(topic, required="less", got="more")
        if len(self.sent) == self.fail_at:
            raise StreamError(topic, required="a confirmed record", got="none")
        self.sent.append((topic, value, headers))


ONE_EACH = run_of([(some_actions(1, 5, seed), T0) for seed in range(250)])
ALL = [OutsideActions("v", "late", np.arange(250))]


def test_late_messages_leave_together_and_in_order() -> None:
    broker = Broker()
    aside = SideOutputs("actions", broker)
    asyncio.run(aside.send_late(ONE_EACH, ALL))
    sources = [headers[HEADER_SOURCE].decode() for _, _, headers in broker.sent]
    assert sources == [f"actions/0/{offset}" for offset in range(250)]
    assert 10 < broker.most <= AT_ONCE
    assert all(len(decode_batch(value or b"").actions) == 1 for _, value, _ in broker.sent)
    assert aside.tally.of(0).late == 250


def test_one_message_that_is_not_confirmed_fails_the_whole() -> None:
    broker = Broker(fail_at=120)
    with pytest.raises(StreamError, match="confirmed"):
        asyncio.run(SideOutputs("actions", broker).send_late(ONE_EACH, ALL))
    assert len(broker.sent) < 250


def test_a_letter_that_is_too_large_tells_its_place_and_size() -> None:
    """Whatever of it is large; the others are sent as they are, and one of nothing as empty."""
    error = ActionError("t/0/1", required="r", got="g")
    wide = record(b"v" * 700, 1, key=b"k" * 1_100, headers=[("h", b"h" * 9)])
    dead = [DeadLetter(each, error) for each in (record(b"small", 0), wide, record(None, 2))]
    broker = Broker()
    aside = SideOutputs("actions", broker)
    asyncio.run(aside.send_dead(dead))
    sent = {headers[HEADER_SOURCE]: (value, headers) for _, value, headers in broker.sent}
    assert [sent[b"actions/0/%d" % at][0] for at in range(3)] == [b"small", b"", b""]
    assert sent[b"actions/0/1"][1] == {
        HEADER_REASON: b"t/0/1: needs r, got g",
        HEADER_CODE: b"action",
        HEADER_SOURCE: b"actions/0/1",
        HEADER_LEFT_OUT: b"1809",
    }
    assert aside.tally.of(0).dead == aside.dead_letters == 3
