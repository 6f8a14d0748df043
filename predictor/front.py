"""In front of the application: what is refused here costs no task, no routing and no body.

Under overload most requests are refused, on the event loop that serves the others; so a refusal is
written as soon as a request's headers are there, by the connection itself.

A loop that is late does not know for how long a request has been waiting for it, but the kernel
does (`store.tcp`).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from predictor.http import WAITED
from predictor.models import MODELS
from predictor.protocol import encode_error
from predictor.service import Service
from predictor.timeline import Timeline
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
        self._made: dict[tuple[str, bool], bytes] = {}

    def of(self, error: RequestError, headers: list[tuple[bytes, bytes]], *, stays: bool) -> bytes:
        """headers: of each reply; another list has other ones. stays: the connection."""
        if headers is not self._headers:
            self._headers, self._made = headers, {}
        key = str(error), stays
        made = self._made.get(key)
        if made is None:
            body = encode_error({"error": str(error), **error.parts()})
            lines = [_HEAD, b"content-length: %d\r\n" % len(body)]
            lines += [b"%s: %s\r\n" % header for header in headers]
            lines += [b"\r\n" if stays else b"connection: close\r\n\r\n", body]
            made = self._made[key] = b"".join(lines)
        return made


_REPLIES: Final = Replies()


class Front(HttpToolsProtocol):
    """A connection to an application whose `state.service` is a Service.

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
        app: Any = config.app
        service: Service = app.state.service
        self._admission = service.ranker.admission
        self._resting = service.ranker.resting
        self._metrics = service.observer.metrics
        self._refused = False  # the request that is coming in
        self._stays = True  # the connection, after it
        self._socket: Any = None  # of a TCP connection

    def connection_made(self, transport: Any) -> None:
        """Called once."""
        super().connection_made(transport)
        self._socket = tcp_socket(transport)

    def on_headers_complete(self) -> None:
        """Refuse the request, or begin it."""
        name = _NAMES.get(self.url)
        if name is not None and self._is_next():
            try:
                self._admission.check()  # the kernel is asked for those alone whom this lets in
                waited_s = since_received_s(self._socket)
                self._admission.check(waited_s=waited_s)
            except RequestError as error:
                self._refuse(name, error)
                return
            self._admission.coming += 1
            self.scope["state"][WAITED] = waited_s
            super().on_headers_complete()
            # Called behind the task's first step, which meets admission if the body is there.
            self.loop.call_soon(self._came)
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Of a refused request it is read, so that the next one is found behind it, and dropped."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A connection ends, or waits for its next request, only when this one is read: closed
        earlier, what is still coming in would reset it and take the reply along."""
        if not self._refused:
            super().on_message_complete()
            return
        self._refused = False
        self.server_state.total_requests += 1
        if not self._stays:
            self.transport.close()
        elif not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _came(self) -> None:
        self._admission.coming -= 1

    def _is_next(self) -> bool:
        """It is a POST whose reply is the next on this connection, and whose body will come."""
        return (
            getattr(self.cycle, "response_complete", True)  # None before the first
            and self.parser.get_method() == b"POST"
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and not self.transport.is_closing()
            and not self.flow.write_paused
        )

    def _refuse(self, name: str, error: RequestError) -> None:
        self._refused = True
        self._stays = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        headers = self.server_state.default_headers
        self.transport.write(_REPLIES.of(error, headers, stays=self._stays))
        self._metrics.observe(Timeline(name, "http"), error.status, error.where)
        self._resting.refused()
