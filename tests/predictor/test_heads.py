"""A head that is read without the parser is read as the parser reads it, or not at all."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.heads import plain_post

PLAIN = b"POST /a/b HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n"

#: Lines that say how a message is framed, or what its connection does, in all kinds of spelling.
LINES = st.sampled_from(
    [
        *(b"host: x", b"accept: */*", b"x-content-length: 7", b"content-type: a/b", b"n:", b"n:v"),
        *(b"content-length: 3", b"Content-Length:3", b"CONTENT-LENGTH:  3 ", b"content-length: 0"),
        *(b"content-length: +3", b"content-length: 3, 3", b"content-length : 3", b"content-length"),
        *(b"content-length: 0003", b"content-length: 9999999999999999999", b"content-length: 3\t"),
        *(b"connection: close", b"Connection: keep-alive", b"connection:upgrade", b"Upgrade: h2c"),
        *(b"expect: 100-continue", b"Expect:x", b"transfer-encoding: chunked", b" folded: 1"),
        *(b"Transfer-Encoding: identity", b"x: a\ncontent-length: 1", b"x: a\rexpect: 1", b""),
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ]
)
STARTS = st.sampled_from(
    [
        *(
            b"POST /a/b HTTP/1.1",
            b"POST /a/b?c=d HTTP/1.1",
            b"POST /a/b HTTP/1.0",
            b"GET /a HTTP/1.1",
        ),
        *(b"POST  /a HTTP/1.1", b"post /a HTTP/1.1", b"POST /a HTTP/1.1 ", b"POST /a\xff HTTP/1.1"),
        *(b"POST http://x/a HTTP/1.1", b"POST * HTTP/1.1", b"POST /a HTTP/2.0"),
        *(b"GET /a HTTP/1.1", b"POST /a", b""),
    ]
)


class Parsed:
    """What the parser that uvicorn uses makes of the bytes."""

    def __init__(self, data: bytes) -> None:
        self.url, self.body, self.whole = b"", 0, 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.parser: Any = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += len(body)

    def on_message_complete(self) -> None:
        self.whole += 1


@given(STARTS, st.lists(LINES, max_size=6), st.sampled_from([b"\r\n", b"\n"]))
def test_it_agrees_with_the_parser(start: bytes, lines: list[bytes], end: bytes) -> None:
    head = end.join([start, *lines, b"", b""])
    found = plain_post(head)
    if found is None:
        return
    path, size = found
    assert size >= len(head)
    parsed = Parsed(head + b"x" * (size - len(head)))
    assert (parsed.url, parsed.body, parsed.whole) == (path, size - len(head), 1)
    assert (parsed.parser.get_method(), parsed.parser.get_http_version()) == (b"POST", "1.1")
    assert parsed.parser.should_keep_alive()
    assert not parsed.parser.should_upgrade()
    assert not {b"expect", b"transfer-encoding", b"connection"} & {
        name for name, _ in parsed.headers
    }


def test_what_clients_send_is_read() -> None:
    assert plain_post(PLAIN + b"ab") == (b"/a/b", len(PLAIN) + 3)
    assert plain_post(PLAIN.replace(b"content-length: ", b"Content-Length:") + b"abcd") is not None
    assert plain_post(PLAIN.replace(b"host", b"X-Content-Length: 7\r\nhost")) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POST", b"PUT"),
        (b"1.1", b"1.0"),
        (b"3\r\n\r\n", b"3\r\n"),
        (b"3", b"3\r\ncontent-length: 3"),
        (b"3", b"3\r\nTransfer-Encoding: chunked"),
        (b"3", b"3\r\nConnection: close"),
        (b"3", b"3\r\nexpect: 100-continue"),
        (b"3", b"1234567890123"),
        (b"host: x", b"host: x\r\n folded"),
    ],
)
def test_what_says_more_is_left_to_the_parser(old: bytes, new: bytes) -> None:
    assert plain_post(PLAIN.replace(old, new)) is None
