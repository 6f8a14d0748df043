"""What one request may ask for. Anything beyond is refused before it costs anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """body_bytes: largest request body; more is 413 before it is read. candidates: most of one
    request. page: largest page_size. in_flight: requests served at once; more is 503. timeout_ms:
    largest `timeout` a caller may set. name_chars: longest name or request id that is looked at.
    values: most of one reply of features, rows times features: 50,000 take a tenth of a second, in
    which nobody else is served.
    """

    body_bytes: int = 1 << 20
    candidates: int = 10_000
    page: int = 1_000
    in_flight: int = 256
    timeout_ms: int = 10_000
    name_chars: int = 128
    values: int = 50_000
