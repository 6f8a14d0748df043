"""Many action messages at once: those that `encode_batch` wrote, or that are laid out like it.

    0   24 bytes, always the same: root offset, "EACT", vtable, table, vector offset
    24  i64 sent_ms
    32  u32 0, u32 count of actions
    40  count structs of 96 bytes (`schemas.actions.ACTION`), and nothing behind them

So the fronts of many messages are one array, and their actions another. A message of any other
layout, or with anything to refuse, is left to `decode_message`, which reads every FlatBuffer of the
schema and says what is wrong. Bare actions (i64 sent_ms, one struct) are taken in the same way.

Symbols: m messages, a actions in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.actions import ACTION, MAX_ACTIONS, MAX_TIME_MS, sound
from schemas.names import CONTENT_ACTION, CONTENT_BATCH

SAME: Final = bytes.fromhex("100000004541435408001400080004000800000010000000")
_BATCH_FRONT: Final = np.dtype(
    [("same", "<u8", (3,)), ("sent_ms", "<i8"), ("zero", "<u4"), ("n", "<u4")]
)
_BARE_FRONT: Final = np.dtype([("sent_ms", "<i8")])
_FRONTS: Final[Mapping[bytes, np.dtype[Any]]] = {
    CONTENT_BATCH: _BATCH_FRONT,
    CONTENT_ACTION: _BARE_FRONT,
}


@dataclass(frozen=True, slots=True)
class Bulk:
    """The messages that were taken. at: (m,) which of those given, ascending. sent_ms: (m,) i64 and
    sizes: (m,) i64 of each. actions: (a,) ACTION, message after message, all safe to fold.
    """

    at: NDArray[np.intp]
    sent_ms: NDArray[np.int64]
    sizes: NDArray[np.int64]
    actions: NDArray[np.void]

    @property
    def starts(self) -> NDArray[np.int64]:
        """(m,) i64: where each message's actions begin."""
        starts: NDArray[np.int64] = np.cumsum(self.sizes) - self.sizes
        return starts


def decode_many(values: Sequence[bytes], content: bytes) -> Bulk:
    """The messages among `values` that can be read at once. Raises nothing for what they hold.

    content: the form of them all; of any other than a batch or a bare action none is taken.
    """
    form = _FRONTS.get(content)
    if form is None:
        return _none()
    lengths = np.fromiter(map(len, values), np.int64, len(values))  # (values,)
    sizes, rest = np.divmod(lengths - form.itemsize, ACTION.itemsize)
    right = (rest == 0) & (sizes > 0) & (sizes <= (MAX_ACTIONS if form is _BATCH_FRONT else 1))
    if not right.all():
        values = [values[index] for index in np.flatnonzero(right).tolist()]
    fronts = np.frombuffer(b"".join([value[: form.itemsize] for value in values]), form)  # (m,)
    at, sizes = np.flatnonzero(right), sizes[right]
    good = (fronts["sent_ms"] > 0) & (fronts["sent_ms"] < MAX_TIME_MS)
    if form is _BATCH_FRONT:
        good &= (fronts["same"] == np.frombuffer(SAME, "<u8")).all(axis=1)
        good &= (fronts["zero"] == 0) & (fronts["n"] == sizes)
    if not good.all():
        values = [values[index] for index in np.flatnonzero(good).tolist()]
        at, sizes, fronts = at[good], sizes[good], fronts[good]
    if len(at) == 0:
        return _none()
    actions = np.frombuffer(b"".join([value[form.itemsize :] for value in values]), ACTION)
    return _sound(Bulk(at, fronts["sent_ms"].astype(np.int64), sizes, actions))


def _sound(bulk: Bulk) -> Bulk:
    """Without the messages of which an action must not be folded."""
    fine = sound(bulk.actions)  # (a,)
    if fine.all():
        return bulk
    good = np.logical_and.reduceat(fine, bulk.starts)  # (m,)
    kept = np.repeat(good, bulk.sizes)
    return Bulk(bulk.at[good], bulk.sent_ms[good], bulk.sizes[good], bulk.actions[kept])


def _none() -> Bulk:
    empty = np.zeros(0, np.int64)
    return Bulk(np.zeros(0, np.intp), empty, empty, np.zeros(0, ACTION))
