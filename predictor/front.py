"""In front of the application: what is refused here costs no task, no routing and no body.

Under overload most requests are refused, on the event loop that serves the others; so a refusal is
written as soon as a request's headers are there, by the connection itself, and where nothing in
them is out of the ordinary the parser is not asked (`predictor.heads`).

A loop that is late does not know for how long a request has been waiting for it, but the kernel
does (`store.tcp`).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from predictor.connection import Connection
from predictor.heads import plain_post
from predictor.http import WAITED
from predictor.models import MODELS
from predictor.protocol import encode_error
from schemas.errors import RequestError
from store.tcp import since_received_s, tcp_socket

#: Routes that meet admission, and the names that their requests are counted under.
_NAMES: Final = {
    **{f"/v2/models/{name}/infer".encode(): name for name in MODELS},
    b"/get-online-features": "get-online-features",
}
_HEAD: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
)


class Replies:
    """Refusals as they are written. Waits are told in whole ms, so that few differ in the second
    for which uvicorn's headers, the date, are the same."""

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._made: dict[tuple[RequestError, bool], bytes] = {}

    def of(self, error: RequestError, headers: list[tuple[bytes, bytes]], *, stays: bool) -> bytes:
        """error: the same one where it is equal. headers: of each reply; another list has other
        ones. stays: the connection."""
        if headers is not self._headers:
            self._headers, self._made = headers, {}
        made = self._made.get((error, stays))
        if made is None:
            body = encode_error(error)
            lines = [_HEAD, b"content-length: %d\r\n" % len(body)]
            lines += [b"%s: %s\r\n" % header for header in headers]
            lines += [b"\r\n" if stays else b"connection: close\r\n\r\n", body]
            made = self._made[error, stays] = b"".join(lines)
        return made


_REPLIES: Final = Replies()


class Front(Connection):
    """A connection whose requests meet admission.

    Requests that it leaves alone (pipelined behind one that is served, `Expect`, other spellings of
    a route, callers that do not read) meet admission in their handlers.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._admission = self.service.ranker.admission
        self._resting = self.service.ranker.resting
        self._metrics = self.service.observer.metrics
        self._refused = False  # the request that is coming in
        self._between = True  # requests: the parser has none begun
        self._owed = 0  # bytes of the body of one that was refused unparsed, still to come
        self._stays = True  # the connection, after it
        self._socket: Any = None  # of a TCP connection

    def connection_made(self, transport: Any) -> None:
        """Called once."""
        super().connection_made(transport)
        self._socket = tcp_socket(transport)

    def data_received(self, data: bytes) -> None:
        """Refuse what begins here, or parse it."""
        if self._owed:
            self._owed -= len(data)
            if self._owed > 0:
                return
            data, self._owed = data[len(data) + self._owed :], 0
            self._rest()
            if not data:
                return
        if not (self._between and self._refuses(data)):
            super().data_received(data)

    def _refuses(self, data: bytes) -> bool:
        """Whether it could be, and was, refused unparsed: no request behind another is."""
        post = plain_post(data)
        if post is None:
            return False
        path, size = post
        name = _NAMES.get(path)
        if name is None or size < len(data) or not self._is_free():
            return False
        refusal = self._admission.refusal()
        if refusal is None:
            return False
        self._answer(name, refusal, stays=True)
        self._owed = size - len(data)
        if self._owed:
            self._unset_keepalive_if_required()
        else:
            self._rest()
        return True

    def _rest(self) -> None:
        """The connection waits for its next request. A timer that runs already is not set anew for
        each: at its end it looks whether it was too early."""
        self.server_state.total_requests += 1
        self._since_s = self.loop.time()
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._wait(self.timeout_keep_alive)

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._between = False
        super().on_message_begin()

    def begin(self) -> None:
        """Refuse the request, or begin it."""
        name = _NAMES.get(self.url)
        if name is not None and self._is_next():
            refusal, waited_s = self._admission.refusal(), 0.0
            if refusal is None:  # the kernel is asked for those alone whom this lets in
                waited_s = since_received_s(self._socket)
                refusal = self._admission.refusal(waited_s=waited_s)
            if refusal is not None:
                self._refuse(name, refusal)
                return
            self._admission.coming += 1
            self.scope["state"][WAITED] = waited_s
            super().begin()
            # Called behind the task's first step, which meets admission if the body is there.
            self.loop.call_soon(self._came)
            return
        super().begin()

    def on_body(self, body: bytes) -> None:
        """Drop the body of a refused request; it is read to find the next one behind it."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A connection ends, or waits for its next request, only when this one is read: closed
        earlier, what is still coming in would reset it and take the reply along."""
        self._between = True
        if not self._refused:
            super().on_message_complete()
            return
        self._refused = False
        if not self._stays:
            self.transport.close()
        self._rest()

    def _came(self) -> None:
        self._admission.coming -= 1

    def _is_next(self) -> bool:
        """It is a POST whose reply is the next on this connection, and whose body will come."""
        return (
            self.parser.get_method() == b"POST" and not self.expect_100_continue and self._is_free()
        )

    def _is_free(self) -> bool:
        """Nothing is to be written before, and it can be."""
        return (
            getattr(self.cycle, "response_complete", True)  # None before the first
            and not self.transport.is_closing()
            and not self.flow.write_paused
        )

    def _refuse(self, name: str, error: RequestError) -> None:
        self._refused = True
        self._stays = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        self._answer(name, error, stays=self._stays)

    def _answer(self, name: str, error: RequestError, *, stays: bool) -> None:
        headers = self.server_state.default_headers
        self.transport.write(_REPLIES.of(error, headers, stays=stays))
        self._metrics.observe_refused(name, "http", error.status, error.where)
        self._resting.refused()
