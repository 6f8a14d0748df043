"""Reading a FlatBuffer that may be damaged.

The FlatBuffers runtime for Python has no verifier, so each offset and length is checked here before
it is used. Source of the format: FlatBuffers, "Binary format" (root offset at 0, optional 4-byte
file identifier at 4; a table starts with the signed distance back to its vtable; a vtable is u16
size, u16 table size, then a u16 offset a field, 0 meaning absent; a vector is a u32 count, then
elements).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import CodecError

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")


@dataclass(frozen=True, slots=True)
class FlatTable:
    """One table inside `data`. Errors are of class `error`, with `where` as their place."""

    data: bytes
    start: int
    vtable: int
    vtable_bytes: int
    table_bytes: int
    where: str
    error: type[CodecError]

    @classmethod
    def root(
        cls, data: bytes, where: str, error: type[CodecError], identifier: bytes | None = None
    ) -> FlatTable:
        """The root table, after its vtable has been checked to lie inside `data`.

        identifier: the file identifier that the buffer must have, if any. Raises `error` for bytes
        that are no such buffer; `where` names them in it.
        """
        if len(data) < 8:
            raise error(where, required="a FlatBuffer of 8 bytes or more", got=f"{len(data)} bytes")
        if identifier is not None and data[4:8] != identifier:
            raise error(
                where,
                required=f"file identifier {identifier.decode()!r}",
                got=repr(data[4:8]),
                do="send what the published .fbs describes, or name the content in the header",
            )
        start = _U32.unpack_from(data, 0)[0]
        if start + 4 > len(data):
            raise error(where, required="a root table inside the buffer", got=f"offset {start}")
        vtable = start - _I32.unpack_from(data, start)[0]
        if not 0 <= vtable <= len(data) - 4:
            raise error(where, required="a vtable inside the buffer", got=f"offset {vtable}")
        vtable_bytes = _U16.unpack_from(data, vtable)[0]
        table_bytes = _U16.unpack_from(data, vtable + 2)[0]
        if vtable_bytes < 4 or vtable_bytes % 2 or vtable + vtable_bytes > len(data):
            raise error(where, required="a whole vtable", got=f"{vtable_bytes} bytes at {vtable}")
        if table_bytes < 4 or start + table_bytes > len(data):
            raise error(where, required="a whole table", got=f"{table_bytes} bytes at {start}")
        return cls(data, start, vtable, vtable_bytes, table_bytes, where, error)

    def position(self, field: int, size: int) -> int | None:
        """Where the field's `size` inline bytes begin; None where the field is absent."""
        entry = 4 + 2 * field
        if entry + 2 > self.vtable_bytes:
            return None
        offset = _U16.unpack_from(self.data, self.vtable + entry)[0]
        if offset == 0:
            return None
        if offset < 4 or offset + size > self.table_bytes:
            raise self.error(
                f"{self.where}.field[{field}]",
                required=f"{size} bytes inside a table of {self.table_bytes}",
                got=f"offset {offset}",
            )
        return int(self.start + offset)

    def scalar(self, field: int, form: struct.Struct, default: Any) -> Any:
        """An inline scalar read with `form`, or the default where it is absent."""
        place = self.position(field, form.size)
        return default if place is None else form.unpack_from(self.data, place)[0]

    def vector(self, field: int, dtype: np.dtype[Any], most: int) -> NDArray[Any] | None:
        """A vector as a read-only numpy view, shape (count,); None where it is absent.

        most: the largest count that is accepted.
        """
        place = self.position(field, 4)
        if place is None:
            return None
        begin = place + _U32.unpack_from(self.data, place)[0]
        if begin + 4 > len(self.data):
            raise self._vector_error(field, f"a vector at {begin}")
        count = _U32.unpack_from(self.data, begin)[0]
        if count > most:
            raise self._vector_error(field, f"{count} elements where {most} are the most")
        if begin + 4 + count * dtype.itemsize > len(self.data):
            raise self._vector_error(field, f"{count} elements of {dtype.itemsize} bytes")
        return np.frombuffer(self.data, dtype, count, begin + 4)

    def _vector_error(self, field: int, got: str) -> CodecError:
        return self.error(
            f"{self.where}.field[{field}]",
            required=f"a vector inside the buffer of {len(self.data)} bytes",
            got=got,
        )
