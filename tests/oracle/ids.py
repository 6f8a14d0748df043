"""A value's id, by the reference hash and plain comparisons."""

from __future__ import annotations

import math
import struct

import xxhash

from schemas.ids import string_id
from schemas.plan import TransformPlan


def id_of(value: float | None, transform: TransformPlan) -> int:
    """0 missing, 1 out of vocabulary or range, then from 2."""
    if value is None or math.isnan(value) or value in transform.sentinels:
        return 0
    if transform.kind == "boundaries":
        return 2 + sum(boundary <= value for boundary in transform.boundaries)
    whole = int(value)
    if transform.kind == "hash":
        digest = xxhash.xxh3_64_intdigest(struct.pack("<q", whole), transform.seed)
        return 2 + digest % transform.buckets
    if transform.kind == "identity":
        return 2 + whole if 0 <= whole < transform.buckets else 1
    if transform.kind == "stored":
        return whole if 0 <= whole < transform.size else 1
    words = [string_id(word) if isinstance(word, str) else word for word in transform.values]
    return 2 + words.index(whole) if whole in words else 1
