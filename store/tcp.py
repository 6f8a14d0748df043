"""What the kernel knows of a connection: how long its last bytes have been lying there.

An event loop that is late does not know since when something waits for it, but the kernel does
(Linux, `struct tcp_info`, ms).
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

#: Where `tcpi_last_data_recv` lies, and how much of the struct is asked for.
_LAST_RECEIVED, _TCP_INFO_BYTES = 52, 56
_MS: Final = struct.Struct("=I")


def tcp_socket(transport: Any) -> Any:
    """The socket of a transport over TCP, None of any other."""
    found = transport.get_extra_info("socket")
    return None if found is None or found.family == socket.AF_UNIX else found


def since_received_s(connection: Any) -> float:
    """Since the kernel got the last bytes of a socket, 0 where it does not tell. connection: a
    TCP socket, or None."""
    if connection is None:
        return 0.0
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:  # the other side is gone already
        return 0.0
    (waited_ms,) = _MS.unpack_from(told, _LAST_RECEIVED)
    return float(waited_ms) / 1000
