"""Store keys, topic names and message headers: the only place where they are spelled."""

from __future__ import annotations

import re

# --- store keys -----------------------------------------------------------------------------
PLAN_KEY = "encore:plan"  # JSON of the published plan
PLAN_VERSION_KEY = "encore:plan:version"  # decimal; publishing is compare-and-set on it
STAGED_KEY = "encore:plan:staged"  # JSON of `schemas.staged`, set by the same version
STORE_MARKER_KEY = "encore:marker"  # a random id, there as long as the store was not wiped


def row_key(view: str, generation: int, entity_id: int) -> str:
    """Key of one row. The braces are the cluster hash tag: all rows of an entity share a slot.

    >>> row_key("user_activity", 1, 42)
    'user_activity@1:{42}'
    """
    return f"{view}@{generation}:{{{entity_id}}}"


def row_keys(view: str, generation: int, entity_ids: list[int]) -> list[str]:
    """`row_key` over many ids; the prefix is built once."""
    prefix = f"{view}@{generation}:{{"
    return [f"{prefix}{entity_id}}}" for entity_id in entity_ids]


_ROW_KEY = re.compile(r"([^:{}]+)@([0-9]+):\{(-?[0-9]+)\}")


def parse_row_key(key: str) -> tuple[str, int, int] | None:
    """The inverse of `row_key`, None for any other key.

    >>> parse_row_key("user_activity@1:{42}")
    ('user_activity', 1, 42)
    >>> parse_row_key("encore:plan")
    """
    found = _ROW_KEY.fullmatch(key)
    return None if found is None else (found[1], int(found[2]), int(found[3]))


def row_pattern(view: str = "*") -> str:
    """A glob for SCAN that matches every row of a view, or of all; what matches may be no row.

    >>> row_pattern("user_activity")
    'user_activity@*:{*}'
    """
    return f"{view}@*:{{*}}"


def progress_key(topic: str, group: str) -> str:
    """Hash {partition: "epoch,next_offset,watermark_ms"}: what a stream has stored so far."""
    return f"encore:progress:{topic}:{group}"


def generation_group(group: str, view: str, generation: int) -> str:
    """The name under which one generation's progress is kept, beside its group's own.

    >>> generation_group("encore", "user_activity", 2)
    'encore:user_activity@2'
    """
    return f"{group}:{view}@{generation}"


def floors_keys(topic: str, group: str, view: str, generation: int) -> tuple[str, str]:
    """JSON {partition: [epoch, offset]}: where a generation begins; and that text's version.

    >>> floors_keys("actions", "encore", "user_activity", 2)[0]
    'encore:floors:{actions:encore:user_activity@2}'
    """
    key = f"encore:floors:{{{topic}:{generation_group(group, view, generation)}}}"
    return key, f"{key}:version"


def gaps_keys(topic: str, group: str, view: str, generation: int) -> tuple[str, str]:
    """JSON {partition: [[epoch, first, next], …]}: what a generation lacks; and its version.

    >>> gaps_keys("actions", "encore", "user_activity", 2)[0]
    'encore:gaps:{actions:encore:user_activity@2}'
    """
    key = f"encore:gaps:{{{topic}:{generation_group(group, view, generation)}}}"
    return key, f"{key}:version"


def losses_keys(view: str, generation: int) -> tuple[str, str]:
    """JSON [[topic, topic id, partition, first, next], …]: messages without which a generation was
    filled, since nobody holds them and that was accepted; and that text's version.

    >>> losses_keys("user_activity", 2)[0]
    'encore:losses:{user_activity@2}'
    """
    key = f"encore:losses:{{{view}@{generation}}}"
    return key, f"{key}:version"


def epoch_key(topic: str) -> str:
    """Hash {topic id: epoch}: the number the store gave to each broker-assigned topic id."""
    return f"encore:epoch:{topic}"


def partitions_keys(topic: str) -> tuple[str, str]:
    """Decimal: how many partitions the topic had when it was first read; and that text's version.

    >>> partitions_keys("actions")[0]
    'encore:partitions:{actions}'
    """
    key = f"encore:partitions:{{{topic}}}"
    return key, f"{key}:version"


def topics_keys(root: str) -> tuple[str, str]:
    """JSON of `schemas.succession`: the topics after a first one; and that text's version.

    >>> topics_keys("actions")[0]
    'encore:topics:{actions}'
    """
    key = f"encore:topics:{{{root}}}"
    return key, f"{key}:version"


def source_table_key(topic: str, group: str, partition: int) -> str:
    """JSON of how far a re-keyed partition is folded: its position and its source table."""
    return f"encore:sources:{{{topic}:{group}:{partition}}}"


def source_table_version_key(topic: str, group: str, partition: int) -> str:
    """Decimal; saving the text of `source_table_key` is compare-and-set on it."""
    return source_table_key(topic, group, partition) + ":version"


def worker_key(topic: str, group: str, partition: int) -> str:
    """JSON of what the process that has the partition says of itself, for people."""
    return f"encore:worker:{{{topic}:{group}:{partition}}}"


def redriven_keys(dead_topic: str, topic_id: str) -> tuple[str, str]:
    """JSON of which letters of a dead-letter topic were put back; and that text's version."""
    key = f"encore:redriven:{{{dead_topic}:{topic_id}}}"
    return key, f"{key}:version"


# --- topics ---------------------------------------------------------------------------------
ACTIONS_TOPIC = "actions"
RANK_LOG_TOPIC = "rank-log"
BY_ITEM_SUFFIX = ".by-item"


def by_item_topic(topic: str) -> str:
    """The actions of `topic` once more, keyed by item: what item views are fed from.

    >>> by_item_topic("actions")
    'actions.by-item'
    """
    return topic + BY_ITEM_SUFFIX


_SUCCESSOR = re.compile(r"(.+?)(?:\.([0-9]+))?(\.by-item)?")


def successor_topic(topic: str, number: int) -> str:
    """The name of the topic that actions move to; number: from 2, 1 being the first topic.

    >>> successor_topic("actions", 2)
    'actions.2'
    """
    return f"{topic}.{number}"


def root_topic(topic: str) -> str:
    """The name that a topic and all that came before and after it have in common. Plans name it,
    logs are numbered under it, and the archive lies under it.

    >>> root_topic("actions.2"), root_topic("actions.2.by-item"), root_topic("rank-log")
    ('actions', 'actions.by-item', 'rank-log')
    """
    found = _SUCCESSOR.fullmatch(topic)
    return topic if found is None else found[1] + (found[3] or "")


def topic_number(topic: str) -> int:
    """The inverse of `successor_topic`: the place of a topic among those with its root, from 1.

    >>> topic_number("actions"), topic_number("actions.2"), topic_number("actions.12.by-item")
    (1, 2, 12)
    """
    found = _SUCCESSOR.fullmatch(topic)
    return 1 if found is None else int(found[2] or 1)


def dead_letter_topic(topic: str) -> str:
    """Where refused messages of `topic` go, with the reason in their headers.

    >>> dead_letter_topic("actions.2")
    'actions.dead'
    """
    return f"{root_topic(topic)}.dead"


def late_topic(topic: str) -> str:
    """Where actions of `topic` go that a view finds late or from the future, as action batches."""
    return f"{root_topic(topic)}.late"


def is_made(topic: str) -> bool:
    """What encore writes there is made of messages of another topic.

    >>> [is_made(each) for each in ("actions", "actions.2", "actions.2.by-item", "actions.late")]
    [False, False, True, True]
    """
    return topic.endswith((BY_ITEM_SUFFIX, ".dead", ".late"))


# --- message headers ------------------------------------------------------------------------
HEADER_CONTENT = "encore-content"  # one of the CONTENT_* values; absent means an action batch
CONTENT_BATCH = b"action-batch"
CONTENT_ACTION = b"action"  # one bare action: sent_ms, then the struct
CONTENT_JSON = b"action-json"
CONTENT_END = b"topic-end"  # the end of a partition: nothing behind it counts; names the successor

HEADER_REASON = "encore-reason"  # dead letters: the error's text; late actions: which bound
HEADER_CODE = "encore-code"  # dead letters: the error's code; late actions: late, future
HEADER_SOURCE = "encore-source"  # dead letters: "topic/partition/offset"
HEADER_LEFT_OUT = "encore-left-out"  # dead letters of messages too large for one: their bytes
HEADER_LOG = "encore-log"  # re-keyed messages: id of the topic that they were made for
HEADER_VIEW = "encore-view"  # late actions: the view that did not take them
HEADER_REDRIVEN = "encore-redriven"  # a message put back: "dead-letter topic/offset" of its letter
