"""From values to ids: hashes, Kafka's partition, and the five ID transforms.

Sources: xxHash 0.8, `XXH3_64bits_withSeed` for inputs of 4 to 8 bytes; Apache Kafka,
`Utils.murmur2` and `BuiltInPartitioner.partitionForKey` (the default partitioner's rule for a keyed
record). Both are held to the reference libraries by tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.plan import TransformPlan

MISSING: Final = 0
OUT_OF_RANGE: Final = 1
FIRST_ID: Final = 2

Array = NDArray[Any]

_XXH3_BITFLIP: Final = np.uint64(0x1CAD21F72C81017C ^ 0xDB979083E96DD4DE)  # secret[8:16] ^ [16:24]
_XXH3_PRIME: Final = np.uint64(0x9FB21C651E98DF25)
_BY_24, _BY_32, _BY_49 = ((np.uint64(bits), np.uint64(64 - bits)) for bits in (24, 32, 49))
_LENGTH: Final = np.uint64(8)  # of what is hashed, in bytes
_LENGTH_SHIFT: Final = np.uint64(35)
_LAST_SHIFT: Final = np.uint64(28)
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_MURMUR_M: Final = np.uint32(0x5BD1E995)
_MURMUR_SEED: Final = 0x9747B28C


def string_id(text: str) -> int:
    """A string's id: xxh3-64 of its UTF-8 bytes as a two's complement int64.

    >>> string_id("full_active")
    -6150817466143929619
    """
    value = xxhash.xxh3_64_intdigest(text.encode())
    return value - (1 << 64) if value >= 1 << 63 else value


def key_id(values: Sequence[int | str]) -> int:
    """The entity id of a key, its values in the order of the sorted join keys.

    One integer is its own id and one string its `string_id`. Several are the xxh3-64 of their ids'
    8 little-endian bytes each, one after the other. Raises OverflowError beyond int64.

    >>> key_id([7]), key_id(["full_active"]) == string_id("full_active")
    (7, True)
    >>> key_id([7, "full_active"]) == key_id([7, string_id("full_active")])
    True
    """
    ids = [string_id(value) if isinstance(value, str) else value for value in values]
    raw = b"".join(each.to_bytes(8, "little", signed=True) for each in ids)
    if len(ids) == 1:
        return ids[0]
    return int.from_bytes(xxhash.xxh3_64_digest(raw), "big", signed=True)


def hash64(values: Array, seed: int = 0) -> NDArray[np.uint64]:
    """xxh3-64 of each int64's 8 little-endian bytes.

    values: int64 of any shape. Returns uint64 of the same shape.
    """
    return flipped_hash64(values.astype(np.int64, copy=False), seed_flip(seed))


def seed_flip(seed: int) -> np.uint64:
    """What `flipped_hash64` takes for a seed."""
    swapped = int.from_bytes((seed & 0xFFFF_FFFF).to_bytes(4, "little"), "big")
    mixed_seed = (seed & _U64) ^ (swapped << 32)
    return np.uint64((int(_XXH3_BITFLIP) - mixed_seed) & _U64)


def flipped_hash64(
    values: NDArray[np.int64], flip: np.uint64 | NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """`hash64` by the `seed_flip` of the seed: one for all, or an array that broadcasts.

    values: int64 of any shape. Returns uint64 of the broadcast shape.
    """
    hashed = _rotate_left(values.view(np.uint64), *_BY_32) ^ flip
    turned = _rotate_left(hashed, *_BY_49)
    turned ^= _rotate_left(hashed, *_BY_24)
    hashed ^= turned
    hashed *= _XXH3_PRIME
    np.right_shift(hashed, _LENGTH_SHIFT, out=turned)
    turned += _LENGTH
    hashed ^= turned
    hashed *= _XXH3_PRIME
    np.right_shift(hashed, _LAST_SHIFT, out=turned)
    hashed ^= turned
    return hashed


def _rotate_left(
    values: NDArray[np.uint64], bits: np.uint64, rest: np.uint64
) -> NDArray[np.uint64]:
    """By `bits`; rest: 64 - bits."""
    rotated = values << bits
    rotated |= values >> rest
    return rotated


def partition_of(entity_id: int, partitions: int) -> int:
    """The partition Kafka's default partitioner gives to the key `str(entity_id)`.

    >>> partition_of(42, 4), partition_of(-1, 4)
    (0, 3)
    """
    return int(partitions_of(np.array([entity_id], np.int64), partitions)[0])


def partitions_of(entity_ids: Array, partitions: int) -> NDArray[np.int32]:
    """`partition_of` over (n,) int64 ids. Returns (n,) int32."""
    text = np.ascontiguousarray(entity_ids.astype(np.int64).astype("S20"))  # (n,) ASCII
    lengths = np.char.str_len(text).astype(np.int64)
    padded = text.view(np.uint8).reshape(len(text), 20)  # (n, 20)
    words = np.ascontiguousarray(padded).view("<u4")  # (n, 5)
    with np.errstate(over="ignore"):
        hashed = np.uint32(_MURMUR_SEED) ^ lengths.astype(np.uint32)
        for column in range(5):
            full = lengths >= 4 * (column + 1)
            word = words[:, column] * _MURMUR_M
            word ^= word >> np.uint32(24)
            word *= _MURMUR_M
            hashed = np.where(full, (hashed * _MURMUR_M) ^ word, hashed)
        # The tail's bytes; the padding behind a shorter id is zero, as Kafka's switch leaves it.
        tail = words[np.arange(len(text)), np.minimum(lengths // 4, 4)]
        hashed = np.where(lengths % 4 > 0, (hashed ^ tail) * _MURMUR_M, hashed)
        hashed ^= hashed >> np.uint32(13)
        hashed *= _MURMUR_M
        hashed ^= hashed >> np.uint32(15)
    return ((hashed & np.uint32(0x7FFF_FFFF)) % np.uint32(partitions)).astype(np.int32)


def log_boundaries(count: int, low: float, high: float) -> tuple[float, ...]:
    """`count` boundaries spaced evenly in the logarithm from low to high, both included.

    They are stored in the plan as numbers, so no two machines can round a logarithm differently.
    """
    return tuple(float(f"{value:.12g}") for value in np.geomspace(low, high, count))


def transform_size(transform: TransformPlan) -> int:
    """How many ids a transform can give, 0 and 1 included."""
    match transform.kind:
        case "vocab":
            return FIRST_ID + len(transform.values)
        case "boundaries":
            return FIRST_ID + len(transform.boundaries) + 1
        case "hash" | "identity":
            return FIRST_ID + transform.buckets
        case "stored":
            return transform.size


def to_ids(values: Array, nulls: Array | None, transform: TransformPlan) -> NDArray[np.int32]:
    """Values → ids in [0, transform.size).

    values: any shape and numeric dtype. nulls: bool of that shape, or None where nothing is null.
    Null, NaN and sentinel values give 0, what lies out of vocabulary or range 1. Returns int32 of
    the same shape.
    """
    missing = np.zeros(values.shape, bool) if nulls is None else nulls
    if values.dtype.kind == "f":
        missing = missing | np.isnan(values)
    for sentinel in transform.sentinels:
        missing = missing | (values == sentinel)
    ids = _present_ids(values, missing, transform)
    return np.where(missing, np.int32(MISSING), ids).astype(np.int32, copy=False)


def _present_ids(values: Array, missing: Array, transform: TransformPlan) -> NDArray[np.int32]:
    if transform.kind == "boundaries":
        boundaries = np.asarray(transform.boundaries, np.float64)
        place = np.searchsorted(boundaries, values.astype(np.float64), side="right")
        return (FIRST_ID + place).astype(np.int32)
    whole = np.where(missing, 0, values) if values.dtype.kind == "f" else values
    whole = whole.astype(np.int64)
    match transform.kind:
        case "hash":
            return (hash64(whole, transform.seed) % np.uint64(transform.buckets)).astype(
                np.int32
            ) + np.int32(FIRST_ID)
        case "identity":
            inside = (whole >= 0) & (whole < transform.buckets)
            return np.where(inside, FIRST_ID + whole, OUT_OF_RANGE).astype(np.int32)
        case "stored":
            inside = (whole >= 0) & (whole < transform.size)
            return np.where(inside, whole, OUT_OF_RANGE).astype(np.int32)
    known, position = vocabulary(transform.values)
    if len(known) == 0:
        return np.full(values.shape, OUT_OF_RANGE, np.int32)
    place = np.minimum(np.searchsorted(known, whole), len(known) - 1)
    return np.where(known[place] == whole, FIRST_ID + position[place], OUT_OF_RANGE).astype(
        np.int32
    )


@lru_cache(maxsize=256)
def vocabulary(
    values: tuple[int, ...] | tuple[str, ...],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The sorted vocabulary (strings by their ids) and each entry's declared position."""
    numbers = np.array(
        [string_id(value) if isinstance(value, str) else value for value in values], np.int64
    )
    order = np.argsort(numbers, kind="stable")
    return numbers[order], order.astype(np.int64)


def string_ids(values: list[str | None], transform: TransformPlan) -> NDArray[np.int32]:
    """Strings of a batch source → ids, when a row is written. None is missing. Returns (n,)
    int32.
    """
    nulls = np.array([value is None for value in values], bool)
    codes = np.array([0 if value is None else string_id(value) for value in values], np.int64)
    return to_ids(codes, nulls, transform)
