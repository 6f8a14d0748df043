"""A gRPC server that is asked for calls as `predictor.grpc_intake` says, and not one by one.

`grpc.aio` asks its library for the next call of a method when it has taken the one before: of
calls that come together all but the first wait to be asked for, and each costs the event loop some
turns. How many are asked for cannot be set, so this reaches below `grpc.aio`, to names that it does
not publish (docs/decisions/0015-grpc-intake.md). All of them are in this module and in `NEEDED`;
where the installed library has others, `new_server` says so in the log and gives `grpc.aio`'s own.

    AioServer                   what `grpc.aio.server()` drives: start, shutdown, ports, handlers
    _make_request_call_future   the next call of a method, for the library's own loop
    _request_registered_call    asks for a call of a registered method; ends when one came
    _RequestCallError           how it ends where the server was stopped
    _handle_rpc                 a coroutine that has a call answered by its handler
    _schedule_rpc_coro          runs it, and cancels it when the caller leaves
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

import grpc
import grpc.aio
from grpc._cython import cygrpc

from predictor.admission import Admission
from predictor.grpc_intake import Intake

log: Final = logging.getLogger(__name__)
#: Calls of a method that wait to be asked for: from the first bound on some, from the second on all
#: further ones are reset by the library, outside of Python (the caller: CANCELLED).
UNSEEN: Final = (8, 16)
#: The same where the library asks for calls one by one.
UNSEEN_ONE_BY_ONE: Final = (16, 32)
#: Names of the library and what each takes; None: no function.
NEEDED: Final[Mapping[str, tuple[str, ...] | None]] = {
    "AioServer": None,
    "AioServer._make_request_call_future": ("self", "method_bytes"),
    "AioServer._request_registered_call": ("self", "method"),
    "_RequestCallError": None,
    "_handle_rpc": (
        *("method_name", "method_resolver", "interceptors", "rpc_state", "loop"),
        "concurrency_exceeded",
    ),
    "_schedule_rpc_coro": ("rpc_coro", "rpc_state", "loop", "method_name"),
}
Option = tuple[str, int]
Handlers = Mapping[str, grpc.RpcMethodHandler]


def missing(library: Any = cygrpc) -> list[str]:
    """Names in NEEDED that the library does not have, or not with those parameters."""
    return [name for name, takes in NEEDED.items() if not _has(library, name, takes)]


def _has(library: Any, name: str, takes: tuple[str, ...] | None) -> bool:
    found = library
    for part in name.split("."):
        found = getattr(found, part, None)
    try:
        return found is not None and (
            takes is None or (*inspect.signature(found).parameters,) == takes
        )
    except (TypeError, ValueError):  # no function, or one that does not tell
        return False


def new_server(
    options: Sequence[Option], admission: Admission, library: Any = cygrpc
) -> AcceptingServer | grpc.aio.Server:
    """A server that listens nowhere yet. Call it inside its event loop.

    options: of the library, without the bounds of what waits to be asked for.
    """
    absent = missing(library)
    if not absent:
        try:
            return AcceptingServer(_new_core(options, library), admission)
        except TypeError as error:  # it is made of something else
            absent = [f"AioServer of six arguments ({error})"]
    log.warning(
        "grpcio %s lacks %s: calls are asked for one by one, and bursts of more than %d reset",
        *(grpc.__version__, ", ".join(absent), UNSEEN_ONE_BY_ONE[0]),
    )
    return grpc.aio.server(options=[*options, *_bounds(UNSEEN_ONE_BY_ONE)])


def _new_core(options: Sequence[Option], library: Any) -> Any:
    core = type("Core", (library.AioServer,), {"_make_request_call_future": _next_call})
    loop = asyncio.get_running_loop()
    return core(loop, None, (), None, (*options, *_bounds(UNSEEN)), None)


def _bounds(unseen: tuple[int, int]) -> list[Option]:
    return [
        ("grpc.server.max_pending_requests", unseen[0]),
        ("grpc.server.max_pending_requests_hard_limit", unseen[1]),
    ]


class AcceptingServer:
    """What is used of `grpc.aio.Server` here, under the same names."""

    def __init__(self, core: Any, admission: Admission) -> None:
        """core: its AioServer, of which registered methods are left to this class."""
        self._core = core
        self._admission = admission
        self._accepts: list[Accepts] = []

    @property
    def narrow(self) -> bool:
        """Few calls are asked for: the service is overloaded, and the library resets what is more
        than wait for that."""
        return any(each.narrow for each in self._accepts)

    def add_registered_method_handlers(self, service: str, handlers: Handlers) -> None:
        """Methods whose calls are asked for by how busy the service is."""
        named = {f"/{service}/{method}": handler for method, handler in handlers.items()}
        self._core.add_registered_method_handlers(named)
        for name, handler in named.items():
            self._accepts.append(Accepts(self._core, name, handler, Intake(self._admission)))

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Methods whose calls are asked for one by one."""
        self._core.add_generic_rpc_handlers(handlers)

    def add_insecure_port(self, address: str) -> int:
        """The port. Raises RuntimeError where the address is taken."""
        port: int = self._core.add_insecure_port(address.encode())
        if not port:
            raise RuntimeError(f"{address} is taken")
        return port

    async def start(self) -> None:
        """Take calls: they are asked for when this returns."""
        await self._core.start()
        for each in self._accepts:
            each.start()
        await asyncio.sleep(0)

    async def stop(self, grace_s: float) -> None:
        """Take no more; those in flight have `grace_s` seconds. May be called again."""
        await self._core.shutdown(grace_s)
        for each in self._accepts:
            await each.ended()


def _next_call(core: Any, method: bytes | None) -> Any:
    """In place of AioServer's own, for its loop: registered methods never have a next call there.
    When the server stops, its loop cancels what it waits for."""
    if method is None:
        return cygrpc.AioServer._make_request_call_future(core, None)
    return asyncio.get_running_loop().create_future()


class Accepts:
    """The calls of one method that the library is asked for, each by a task that ends when it came.

    None of them is ever cancelled: until its call came or the server was stopped, the library holds
    on to memory that the task owns.
    """

    def __init__(self, core: Any, name: str, handler: Any, intake: Intake) -> None:
        """core: its AioServer. name: `/package.Service/Method`."""
        self._core = core
        self._name = name
        self._method = name.encode()
        self._resolver = SimpleNamespace(resolve_handler=lambda _: handler)
        self._intake = intake
        self._asked: set[asyncio.Task[None]] = set()
        self._unanswered: set[asyncio.Task[None]] = set()
        self._looks = False

    @property
    def narrow(self) -> bool:
        """As `Intake.narrow`."""
        return self._intake.narrow

    def start(self) -> None:
        """Ask for the first calls. The server was started, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._ask()

    async def ended(self) -> None:
        """Wait until nothing is asked for. The server was stopped."""
        await asyncio.gather(*self._asked)

    def _ask(self) -> None:
        for _ in range(self._intake.wanted(len(self._unanswered)) - len(self._asked)):
            task = self._loop.create_task(self._take())
            self._asked.add(task)
            task.add_done_callback(self._taken)

    async def _take(self) -> None:
        """Have one call answered."""
        while True:
            try:
                state = await self._core._request_registered_call(self._method)
                break
            except cygrpc._RequestCallError:  # the server stops, or a caller left too early
                if not self._core.is_running():
                    return
        handling = cygrpc._handle_rpc(self._name, self._resolver, (), state, self._loop, False)
        call = self._loop.create_task(
            cygrpc._schedule_rpc_coro(handling, state, self._loop, self._name)
        )
        self._unanswered.add(call)
        call.add_done_callback(self._answered)

    def _taken(self, task: asyncio.Task[None]) -> None:
        self._asked.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("grpc: %s was not asked for", self._name, exc_info=error)
        if not self._looks and self._core.is_running():
            self._looks = True
            self._loop.call_later(self._intake.config.every_s, self._look)

    def _answered(self, call: asyncio.Task[None]) -> None:
        self._unanswered.discard(call)
        if self._intake.narrow and self._core.is_running():
            self._ask()

    def _look(self) -> None:
        self._looks = False
        if self._core.is_running():
            self._intake.look(len(self._asked))
            self._ask()
            if not self._intake.rests:
                self._looks = True
                self._loop.call_later(self._intake.config.every_s, self._look)
