"""Lines of JSON into the log of actions."""

from __future__ import annotations

import uuid

import pytest

from schemas.actions import ActionType, decode_batch
from schemas.errors import ActionError
from streams.admin import ensure_topics
from streams.lines import GROUP_LINES, GROUP_MS, parse_line, send_lines
from streams.producer import ActionProducer
from tests.streams.support import T0, read_topic

LIKE = '{"user": 1, "item": 7, "type": "like"}'


class Clock:
    """Each reading is `step_ms` after the one before."""

    def __init__(self, step_ms: int = 1) -> None:
        self.now_ms, self.step_ms = T0, step_ms

    def __call__(self) -> int:
        self.now_ms += self.step_ms
        return self.now_ms


@pytest.fixture
def topic(broker: str) -> str:
    name = f"t{uuid.uuid4().hex[:10]}"
    ensure_topics(broker, {name: 2})
    return name


def test_a_line_is_an_action_of_now_unless_it_says_when() -> None:
    (now,) = parse_line(LIKE, T0, "x")
    assert (now["user"], now["item"], now["type"], now["time_ms"]) == (1, 7, ActionType.LIKE, T0)
    (then,) = parse_line(LIKE[:-1] + ', "time_ms": 5}', T0, "x")
    assert then["time_ms"] == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("like", "lines:3: needs one JSON object a line"),
        ("[" * 100_000, "lines:3: needs one JSON object a line"),
        ("[1]", "lines:3: needs the JSON form of an action"),
        (
            LIKE[:-1] + ', "mood": 1}',
            r"lines:3\.mood: needs .* action, got a field that no action has, of 1;",
        ),
        (LIKE.replace("like", "love"), r"lines:3\.type: needs one of .*, got 'love'"),
        (LIKE[:-1] + ', "request_id": "7"}', r"lines:3\.request_id: needs a UUID"),
    ],
)
def test_a_line_that_is_no_action_is_named(
    broker: str, topic: str, line: str, message: str
) -> None:
    """What came before it is sent, nothing after it."""
    with (
        ActionProducer(broker, topic, 2) as producer,
        pytest.raises(ActionError, match=message),
    ):
        send_lines([LIKE, "\n", line, LIKE], producer, Clock(), "lines")
    (message_there,) = read_topic(broker, topic, 2, 1)
    assert len(decode_batch(message_there.value).actions) == 1


def test_lines_are_grouped_by_number_and_time(broker: str, topic: str) -> None:
    with ActionProducer(broker, topic, 2) as producer:
        full = send_lines([LIKE] * (GROUP_LINES + 1), producer, Clock(0), "x")
        assert (full.actions, sum(full.ends.values())) == (GROUP_LINES + 1, 2)
        slow = send_lines([LIKE] * 4, producer, Clock(GROUP_MS), "x")
        assert (slow.actions, sum(slow.ends.values())) == (4, 4)
        assert send_lines([], producer, Clock(), "x").actions == 0
        set_back = iter((T0 + 3_600_000, T0 + 3_600_001, T0, T0 + 1)).__next__
        assert sum(send_lines([LIKE] * 4, producer, set_back, "x").ends.values()) == 6
    batches = [decode_batch(message.value) for message in read_topic(broker, topic, 2, 6)]
    assert sum(len(batch.actions) for batch in batches) == GROUP_LINES + 9
    assert all((batch.actions["time_ms"] <= batch.sent_ms).all() for batch in batches)
