"""In front of the application: what is refused here costs no routing, no body and no parsing.

Under overload most requests are refused, on the event loop that serves the others; so the refusal
is a comparison or two before anything else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from predictor.metrics import Metrics
from predictor.models import MODELS
from predictor.protocol import encode_error
from predictor.rank import Ranker
from predictor.timeline import Timeline
from schemas.errors import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_INFER: Final = {f"/v2/models/{name}/infer": name for name in MODELS}


class Front:
    """An ASGI application around another: inference requests meet admission first."""

    def __init__(self, app: App, ranker: Ranker, metrics: Metrics) -> None:
        self._app, self._ranker, self._metrics = app, ranker, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        name = _INFER.get(scope["path"]) if scope["type"] == "http" else None
        if name is not None:
            try:
                self._ranker.admission.check()
            except RequestError as error:
                await self._refuse(name, error, send)
                return
        await self._app(scope, receive, send)

    async def _refuse(self, name: str, error: RequestError, send: Send) -> None:
        body = encode_error({"error": str(error), **error.parts()})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", b"1"),
        ]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._metrics.observe(Timeline(name, "http"), error.status, error.where)
