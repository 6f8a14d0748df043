"""Framing of the spool: how payloads lie in a segment file.

A frame is `u32 length, u32 crc32(payload), payload`, little endian; frames follow each other
without padding. A frame holds at least one byte, so a run of zeros, which a power cut may leave,
is no frame.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

from schemas.errors import RecordError

HEADER: Final = struct.Struct("<II")
MAX_PAYLOAD_BYTES: Final = 1 << 28
SEGMENT_SUFFIX: Final = ".spool"
#: What the names of `worker_directory` begin with.
WORKER_PREFIX: Final = "worker-"


def segment_name(sequence: int) -> str:
    """File name of a segment; names sort as their numbers do.

    >>> segment_name(7)
    '00000000000000000007.spool'
    """
    return f"{sequence:020d}{SEGMENT_SUFFIX}"


def worker_directory(spool: Path, number: int) -> Path:
    """The spool of one of several serving processes of a machine, below theirs all.

    >>> str(worker_directory(Path("spool"), 3))
    'spool/worker-3'
    """
    return spool / f"{WORKER_PREFIX}{number}"


def frame(payload: bytes) -> bytes:
    """One frame. Raises RecordError where the payload is empty or over MAX_PAYLOAD_BYTES."""
    if not 0 < len(payload) <= MAX_PAYLOAD_BYTES:
        raise RecordError(
            "spool.frame",
            required=f"a payload of 1 to {MAX_PAYLOAD_BYTES} bytes",
            got=f"{len(payload)} bytes",
        )
    return HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def read_frames(buffer: bytes, where: str = "spool") -> tuple[list[bytes], int]:
    """The whole frames at the front of `buffer` and the bytes they take.

    Stops before a frame that is cut short (a torn tail, or one still being written) and before a
    damaged one. Raises RecordError where the very first frame is damaged, so a reader that moves on
    by the returned count gets everything before the damage first and the error next, never
    a wrong payload.
    """
    payloads: list[bytes] = []
    consumed = 0
    while consumed + HEADER.size <= len(buffer):
        length, checksum = HEADER.unpack_from(buffer, consumed)
        begin, end = consumed + HEADER.size, consumed + HEADER.size + length
        damaged = not 0 < length <= MAX_PAYLOAD_BYTES
        if not damaged:
            if end > len(buffer):
                break
            payload = bytes(buffer[begin:end])
            damaged = zlib.crc32(payload) != checksum
        if damaged:
            if payloads:
                break
            raise RecordError(
                f"{where}.byte[{consumed}]",
                required="a frame whose checksum fits",
                got=f"length {length}, crc32 {checksum:#010x}",
                do="the segment is damaged here; go on with the next one",
            )
        payloads.append(payload)
        consumed = end
    return payloads, consumed
