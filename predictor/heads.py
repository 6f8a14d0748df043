"""The head of an HTTP request that is refused without being parsed.

Under overload most of what a service does for requests it does for those that it refuses, and a
parser that tells each header by a call takes as long as all the rest. What is known from here is
which request it is and where it ends; whatever might say otherwise leaves it to the parser. Clients
send the same few heads again and again, and equal heads mean the same.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_END: Final = b"\r\n\r\n"
#: Visible ASCII for a path, and lines that are neither folded nor empty.
_POST: Final = re.compile(rb"POST ([!-~]+) HTTP/1\.1((?:\r\n[^\s:]+:[^\r\n]*)+)")
_LENGTH: Final = re.compile(rb"\ncontent-length:[ \t]*(\d{1,12})[ \t]*(?=\r|$)", re.IGNORECASE)
#: Of these a head has just the length, once.
_FRAMING: Final = re.compile(
    rb"\n(?:connection|content-length|expect|transfer-encoding|upgrade)(?=:)", re.IGNORECASE
)


def plain_post(data: bytes) -> tuple[bytes, int] | None:
    """The path of the request that begins with `data`, and its size with its body, in bytes.

    None unless it is a POST by HTTP/1.1 with its whole head in there, of one given length, whose
    connection stays and whose caller waits for nothing before it sends the body.

    >>> plain_post(b"POST /a HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 3\\r\\n\\r\\nab")
    (b'/a', 51)
    """
    end = data.find(_END)
    return _read(data[:end]) if end > 0 else None


@lru_cache(maxsize=1_024)
def _read(head: bytes) -> tuple[bytes, int] | None:
    """The same of a head without its end."""
    lines = _POST.fullmatch(head)
    if lines is None:
        return None
    length = _LENGTH.search(lines[2])
    if length is None or len(_FRAMING.findall(lines[2])) != 1:
        return None
    return lines[1], len(head) + len(_END) + int(length[1])
