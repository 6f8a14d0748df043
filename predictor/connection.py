"""A connection before anything is known of what it asks: how its requests must come in.

uvicorn refuses what is no HTTP in plain text, with a line in the log each time; takes heads of any
length, for as long as they last; and loses the body of a request that offers another protocol. Here
such refusals have the shape of every error, heads have a length and a time, and an offer to go over
to another protocol (h2c, which the clients of Java make of themselves, or a WebSocket) is declined
as RFC 9110, 7.8, lets a server do: the request is served as if the offer was not there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from predictor.protocol import encode_error
from predictor.service import Service, defect
from schemas.errors import EncoreError, RequestError

log: Final = logging.getLogger(__name__)
#: Of a request's line and headers, where they come in pieces.
MOST_HEAD_BYTES: Final = 64 << 10
#: How long they may take: connections that wait for a request are kept for longer.
MOST_HEAD_S: Final = 5.0
#: How long a refused caller that still sends is listened to: a connection that is closed with bytes
#: unread is reset, and the reset may overtake the reply.
LINGER_S: Final = 1.0
#: What is counted in place of a model, where nobody knows which was meant.
UNREAD: Final = "unread"
_PHRASES: Final = {
    400: b"Bad Request",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
}
_OFFERS: Final = frozenset((b"upgrade", b"http2-settings"))


class Connection(HttpToolsProtocol):
    """A connection to an application whose `state.service` is a Service."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        app: Any = config.app
        self.service: Service = app.state.service
        self._heading = False  # a head has begun and is not there
        self._head_bytes = 0
        self._declined = False  # the request offers another protocol
        self._ended = False  # nothing is read any more
        self._since_s = 0.0  # what the connection's timer counts from, by the loop's clock

    def connection_made(self, transport: Any) -> None:
        """Called once. Who asks nothing is not waited for."""
        super().connection_made(transport)
        self._wait(self.timeout_keep_alive)

    def data_received(self, data: bytes) -> None:
        """Called with what came."""
        if self._ended:
            return
        if not self._heading:
            self._unset_keepalive_if_required()
        behind = None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            behind = data[offer.args[0] :]
        except httptools.HttpParserError as error:
            self._malformed(error)
            return
        if behind is not None:
            self._decline(behind)
        elif self._heading:
            self._still_heading(len(data))

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._heading, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._heading = False
        self._unset_keepalive_if_required()
        if self.parser.should_upgrade():
            self._declined = True  # the parser stops behind the head
            return
        self.begin()

    def begin(self) -> None:
        """A request's head is there."""
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if not self._declined:
            super().on_message_complete()

    # --- time ----------------------------------------------------------------------------------

    def timeout_keep_alive_handler(self) -> None:
        """Called once the timer has run."""
        left_s = self._since_s + self._most_s - self.loop.time()
        if left_s > 0 and self._since_s:
            self._wait(left_s)
        elif self._heading and not self.transport.is_closing():
            got, required = f"{self._head_bytes} bytes of it", f"all in {self._most_s:g} s"
            self._end(RequestError("head", required=required, got=got, status=408))
        else:
            super().timeout_keep_alive_handler()

    @property
    def _most_s(self) -> float:
        """For what is waited for: the rest of a head, or another request."""
        kept_s = self.timeout_keep_alive
        return min(MOST_HEAD_S, kept_s) if self._heading else kept_s

    def _wait(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _still_heading(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > MOST_HEAD_BYTES:
            required, got = f"at most {MOST_HEAD_BYTES} bytes", f"{self._head_bytes}, and more"
            self._end(RequestError("head", required=required, got=got, status=431))
        elif self.timeout_keep_alive_task is None:
            self._since_s = self.loop.time()
            self._wait(self._most_s)

    # --- what is no request --------------------------------------------------------------------

    def _decline(self, behind: bytes) -> None:
        """Parse the request again without its offer. behind: what came behind its head."""
        self._declined = False
        method: bytes = self.parser.get_method()
        if method == b"CONNECT":
            got, required = "CONNECT", "another method"
            do = "see docs/http.md"
            self._end(RequestError("route", required=required, got=got, do=do, status=405))
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] not in _OFFERS]
        head = b"\r\n".join(_without_offer(line) for line in lines)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"%s\r\n\r\n%s" % (head, behind))

    def _malformed(self, error: httptools.HttpParserError) -> None:
        """What came is no HTTP. A reply that is owed comes first, and is the last."""
        if isinstance(error, httptools.HttpParserCallbackError):
            cause = error.__context__
            if not isinstance(cause, httptools.HttpParserError):
                log.error("a connection failed", exc_info=cause or error)
                self._end(defect(), 500)
                return
        cycle: Any = self.cycle
        where = "head"
        if cycle is not None and not cycle.response_complete:
            if self.pipeline or not cycle.more_body or cycle.response_started:
                cycle.keep_alive = False
                self._ended = True
                return
            cycle.disconnected, where = True, "body"
            cycle.message_event.set()
        self._end(RequestError(where, required="HTTP", got=str(error)[:80]))

    def _end(self, error: EncoreError, status: int | None = None) -> None:
        """Refuse, and read nothing more."""
        self._ended = True
        self._unset_keepalive_if_required()
        told = error.status if isinstance(error, RequestError) else status or 500
        self.service.observer.metrics.observe_refused(UNREAD, "http", told, error.where)
        body = encode_error(error)
        lines = [b"HTTP/1.1 %d %s" % (told, _PHRASES[told]), b"content-type: application/json"]
        lines += [b"%s: %s" % header for header in self.server_state.default_headers]
        lines += [b"content-length: %d" % len(body), b"connection: close", b"", body]
        self.transport.write(b"\r\n".join(lines))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def _without_offer(line: bytes) -> bytes:
    """A line of the head; of `connection` what says nothing of other protocols."""
    name, colon, value = line.partition(b":")
    if name != b"connection":
        return line
    kept = [each for each in value.split(b",") if each.strip().lower() not in _OFFERS]
    return name + colon + b",".join(kept)
