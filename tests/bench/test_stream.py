"""What `bench stream` feeds to everybody, and what it holds their counts to."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bench.stream import bench_plan
from bench.stream_fresh import probes
from bench.stream_log import (
    GATHERED,
    PARTITIONS,
    batched,
    distinct_users,
    kuairand_actions,
    singles,
)
from bench.stream_peers import hourly_counts, message_layout, newest_hours
from bench.stream_scale import Scale
from bench.stream_steady import STEADY_PER_S, Steady, load_messages
from schemas.actions import decode_batch
from schemas.ids import partitions_of
from tests.streams.support import plain

LOG = kuairand_actions(5_000)


def test_single_messages_are_what_the_encoder_writes() -> None:
    body_at, size = message_layout()
    for at, message in enumerate(singles(LOG[:50])):
        decoded, action = decode_batch(message.value), LOG[at]
        assert (decoded.sent_ms, len(message.value)) == (action["time_ms"], size)
        assert plain(decoded.actions) == plain(LOG[at : at + 1])
        assert message.key == b"%d" % action["user"]
        assert int.from_bytes(message.value[body_at : body_at + 8], "little") == action["user"]


def test_batched_messages_hold_every_action_once_and_in_time() -> None:
    seen = 0
    for message in batched(LOG):
        decoded = decode_batch(message.value)
        seen += len(decoded.actions)
        owners = partitions_of(decoded.actions["user"], PARTITIONS)
        assert (owners == message.partition).all()
        assert decoded.sent_ms - decoded.actions["time_ms"].min() < 600_000
        assert len(decoded.actions) < GATHERED
    assert seen == len(LOG)


def test_the_log_goes_on_after_its_end() -> None:
    one = kuairand_actions(1)
    many = kuairand_actions(600_000)
    assert (np.diff(many["time_ms"]) >= 0).all()
    assert plain(many[:1]) == plain(one)
    assert len(np.unique(distinct_users(LOG)["user"])) == len(LOG)


def test_hourly_counts() -> None:
    wanted = Counter(
        (user, time_ms // 3_600_000)
        for user, time_ms in zip(LOG["user"].tolist(), LOG["time_ms"].tolist(), strict=True)
    )
    assert hourly_counts(LOG) == dict(wanted)
    assert newest_hours({(1, 5): 2, (1, 6): 3, (2, 5): 4}) == {(1, 6): 3, (2, 5): 4}


def test_each_probe_ends_with_a_user_of_its_own_partition() -> None:
    view = bench_plan(1).views[-1]
    made = probes(view, LOG, 12)
    users = [decode_batch(probe.value).actions["user"][-1] for probe in made]
    assert len(set(users)) == len(made)
    assert partitions_of(np.array(users), PARTITIONS).tolist() == [p.partition for p in made]


def test_a_spell_of_load_is_of_the_users_asked_for() -> None:
    """All of them about as often, each in its own partition, at the rate in event time."""
    users = np.arange(1 << 44, (1 << 44) + 500)
    made = load_messages(users, LOG, 1_000)
    assert {message.partition for message in made} == set(range(PARTITIONS))
    counts: Counter[int] = Counter()
    for message in made:
        decoded = decode_batch(message.value)
        own = decoded.actions["user"]
        assert (partitions_of(own, PARTITIONS) == message.partition).all()
        assert message.key == b"%d" % own[0]
        counts.update(own.tolist())
    assert set(counts) == set(users.tolist())
    assert max(counts.values()) < 3 * min(counts.values())
    assert abs(sum(counts.values()) * 1_000 / (decoded.sent_ms - 1_000) - STEADY_PER_S) < 100


def test_flatness_is_of_what_one_round_measured() -> None:
    """The machine may be slower in another one."""

    def spells(*costs: float) -> list[Steady]:
        return [Steady({"worker": us - 1, "store": 1, "broker": 50}, 0.5) for us in costs]

    load = {10_000: spells(10, 30, 10), 100_000: spells(2, 2, 2), 1_000_000: spells(11, 30, 15)}
    keys = Scale({}, load).keys()
    assert keys["flat_ratio"] == keys["flat_ratio_row"] == 1.1
    assert [keys[f"us_per_action_{name}"] for name in ("10k", "100k", "1m")] == [10, 2, 15]
