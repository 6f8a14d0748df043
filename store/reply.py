"""MGET without an object a row: the request from arrays of ids, the reply left where it arrived.

    *<n>\r\n                          the reply: n values, each
    $<size>\r\n<size bytes>\r\n           a value
    $-1\r\n                           none (`_\r\n` in RESP3)
    -<message>\r\n                    or an error instead of all of it

Values of one size lie at even distances, so after one header has been read, one comparison tells
how far it repeats. Source of the format: Redis serialization protocol specification.

Symbols: `n` values, `d` decimal digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import hiredis
import numpy as np
from numpy.typing import NDArray
from redis.exceptions import ResponseError

from schemas.errors import StoreError
from schemas.stored import ABSENT, RowKeys, Run, StoredRows

_FEW: Final = 8  # ids up to which Python counts digits faster than numpy
_POWERS: Final = 10 ** np.arange(1, 19, dtype=np.uint64)  # (18,)
_LEAST_ROOM: Final = 1 << 16
_HEADER_ROOM: Final = 32  # bytes: no header of a reply is longer
_VALUE: Final = ord("$")
_NULLS: Final = (b"$-1", b"_")


def values_of(keys: Sequence[RowKeys]) -> int:
    """How many values are asked for."""
    return sum([len(each.entity_ids) for each in keys])


def pack_mget(keys: Sequence[RowKeys]) -> bytes:
    """The MGET of all rows, in order."""
    counts = [len(each.entity_ids) for each in keys]
    parts = [b"*%d\r\n$4\r\nMGET\r\n" % (sum(counts) + 1)]
    if max(counts, default=0) < 2:
        for view, generation, entity_ids in keys:
            if not len(entity_ids):
                continue
            key = f"{view}@{generation}:{{{entity_ids.item()}}}".encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(key), key))
        return b"".join(parts)
    known: tuple[Any, list[int], list[int]] = (None, [], [])
    for each in keys:
        if each.entity_ids is not known[0]:  # views of one side share their ids
            ids = each.entity_ids.tolist()
            known = each.entity_ids, ids, _digits(each.entity_ids, ids)
        _, ids, digits = known
        front = f"{each.view}@{each.generation}:{{".encode()
        literal = front.replace(b"%", b"%%")
        form = {d: b"$%d\r\n%b%%d}\r\n" % (len(front) + d + 1, literal) for d in {*digits}}
        alike = len(form) == 1
        pattern = form[digits[0]] * len(ids) if alike else b"".join([form[d] for d in digits])
        parts.append(pattern % tuple(ids))
    return b"".join(parts)


def _digits(entity_ids: NDArray[np.int64], ids: list[int]) -> list[int]:
    """How many characters each id takes in decimals, sign included."""
    if len(ids) <= _FEW:
        return [len(str(each)) for each in ids]
    magnitude = np.abs(entity_ids).view(np.uint64)  # (n,) the least int64 is its own, 2^63
    digits = _POWERS.searchsorted(magnitude, side="right") + (entity_ids < 0) + 1  # (n,)
    counts: list[int] = digits.tolist()
    return counts


class RowsReply:
    """The reply to one MGET while it arrives.

        while not reply.complete:
            reply.add(socket.recv_into(reply.room()))
        rows = reply.rows()

    wanted: n. room_bytes: what is made room for at first; it grows.
    """

    def __init__(self, wanted: int, room_bytes: int = 0) -> None:
        self.complete = False
        self.filled = 0
        self._buffer = np.empty(max(room_bytes, _LEAST_ROOM), np.uint8)
        self._view = _memory(self._buffer)
        self._wanted = wanted
        self._error: ResponseError | None = None
        self._runs: list[Run] = []
        self._at = 0  # where the next header begins
        self._found = -1  # values so far; -1 before the reply's own header
        self._window = wanted  # how far the next header is expected to repeat

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self.filled == len(self._buffer):
            wider = np.empty(2 * len(self._buffer), np.uint8)
            wider[: self.filled] = self._buffer
            self._buffer, self._view = wider, _memory(wider)
        return self._view[self.filled :]

    def add(self, count: int) -> None:
        """Take in what came into `room`. Raises StoreError for what is no reply to an MGET of n."""
        self.filled += count
        if self._found < 0 and not self._begin():
            return
        take = self._take_value if self._wanted <= _FEW else self._take_run
        while self._found < self._wanted:
            if not take():
                return
        if self.filled != self._at:
            raise _malformed("nothing behind the reply", self._view[self._at : self.filled])
        self.complete = True

    def rows(self) -> StoredRows:
        """The values. Raises redis-py's ResponseError where the server refused."""
        if self._error is not None:
            raise self._error
        return StoredRows(self._buffer, tuple(self._runs))

    def _line(self) -> bytes | None:
        """The header that begins at `_at`, without its end; None where it is not all there."""
        head = bytes(self._view[self._at : min(self._at + _HEADER_ROOM, self.filled)])
        end = head.find(b"\r\n")
        if end < 0 and len(head) == _HEADER_ROOM:
            raise _malformed("a header", self._view[self._at : self.filled])
        return None if end < 0 else head[:end]

    def _begin(self) -> bool:
        """Read the reply's own header. False where it is not all there, or was all."""
        if self.filled and self._view[0] == ord("-"):
            self._refused()
            return False
        line = self._line()
        if line is None:
            return False
        if line != b"*%d" % self._wanted:
            raise _malformed(f"a list of {self._wanted} values", self._view[: self.filled])
        self._at, self._found = len(line) + 2, 0
        return True

    def _refused(self) -> None:
        reader = hiredis.Reader(replyError=ResponseError)
        reader.feed(bytes(self._view[: self.filled]))
        reply = reader.gets()
        if isinstance(reply, ResponseError):
            self._error, self.complete = reply, True

    def _take_run(self) -> bool:
        """Read one header, and as many values behind it as are there. False where none is."""
        line = self._line()
        if line is None:
            return False
        size = ABSENT if line in _NULLS else _size(line)
        header = len(line) + 2
        stride = header if size == ABSENT else header + size + 2
        there = min((self.filled - self._at) // stride, self._wanted - self._found)
        if there == 0:
            return False
        most = min(there, _FEW if size == ABSENT else self._window)
        count = self._repeats(most, stride, header)
        if size != ABSENT:
            self._window = max(self._window, 8 * most) if count == most else 2 * count
        self._append(Run(self._found, count, self._at + header, stride, size))
        return True

    def _take_value(self) -> bool:
        """The same of one value: of a few, that is less work."""
        at = self._at
        head = bytes(self._view[at : min(at + _HEADER_ROOM, self.filled)])
        end = head.find(b"\r\n")
        if end < 0 or not head[1:end].isdigit() or head[0] != _VALUE:
            return self._take_run()
        size, header = int(head[1:end]), end + 2
        stride = header + size + 2
        if at + stride > self.filled:
            return False
        self._append(Run(self._found, 1, at + header, stride, size))
        return True

    def _append(self, run: Run) -> None:
        """These values are there; a run goes on where their header is that of the last."""
        self._at += run.many * run.stride
        self._found += run.many
        if self._runs and self._runs[-1].size == run.size:
            run = self._runs[-1]._replace(many=self._runs[-1].many + run.many)
            self._runs[-1] = run
        else:
            self._runs.append(run)

    def _repeats(self, most: int, stride: int, header: int) -> int:
        """How often the header at `_at` comes again at even distances, itself included."""
        if most == 1:
            return 1
        heads: NDArray[Any] = np.ndarray(
            (most, header), np.uint8, self._buffer, self._at, (stride, 1)
        )
        same = (heads == heads[0]).all(axis=1)  # (most,)
        return most if same.all() else int(same.argmin())


def _memory(buffer: NDArray[np.uint8]) -> memoryview:
    return memoryview(cast(Any, buffer))  # numpy's stub does not say that an array is a buffer


def _size(line: bytes) -> int:
    digits = line[1:]
    if line[:1] != b"$" or not digits.isdigit():
        raise _malformed("a value", memoryview(line))
    return int(digits)


def _malformed(required: str, got: memoryview) -> StoreError:
    return StoreError(
        "store.read_rows",
        required=required,
        got=repr(bytes(got[:40])),
        do="see what else answers on this port",
    )
