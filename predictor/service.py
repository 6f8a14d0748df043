"""What the protocols work on, and what they all do the same way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

from predictor.limits import Limits
from predictor.models import Call, ServedModel, metadata, serve
from predictor.protocol import InferReply, InferRequest
from predictor.rank import Ranker
from predictor.watch import Observer
from predictor.watcher import Watcher
from schemas.errors import EncoreError
from store.base import AsyncRowStore

SERVER_NAME: Final = "encore"
#: What is spoken beyond the protocol itself.
EXTENSIONS: Final = ("binary_tensor_data",)


@dataclass(slots=True)
class Service:
    """A running service. `ready` is False before the first plan and while draining. shares_ports:
    it is one of several processes, and whoever asks on their ports gets any of them."""

    ranker: Ranker
    watcher: Watcher
    observer: Observer
    store: AsyncRowStore
    version: str
    limits: Limits = field(default_factory=Limits)
    page_size: int = 20
    timeout_ms: float = 500.0
    allow_now_ms: bool = False
    ready: bool = True
    shares_ports: bool = False

    def metadata(self) -> dict[str, Any]:
        """The protocol's server metadata."""
        return {"name": SERVER_NAME, "version": self.version, "extensions": list(EXTENSIONS)}

    def model_metadata(self, model: ServedModel) -> dict[str, Any]:
        """What a model takes and gives, and what it is served with."""
        return metadata(model, self.ranker.generations.current, self.watcher.news())

    async def infer(
        self,
        model: ServedModel,
        request: InferRequest,
        version: str = "",
        remaining_ms: float | None = None,
    ) -> InferReply:
        """Serve one request. Raises RequestError.

        version: of the model, "" for any. remaining_ms: until the caller's own deadline.
        """
        call = Call(time.time_ns() // 1_000_000, version, remaining_ms)
        return await serve(model, self.ranker, request, self, call)


def defect() -> EncoreError:
    """What a caller is told of a fault that nobody foresaw; the log has the rest."""
    return EncoreError("server", required="to serve this request", got="a defect of the server")
