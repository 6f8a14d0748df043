"""The event loop rests while it refuses, so that those who are served have the interpreter.

Under overload the loop is woken for each refusal, and each time takes the interpreter lock from the
inference thread, which gives it up with every operation on tensors: both spend more on handing it
over than on their work. So where requests wait for inference the loop sleeps once in each turn that
refused anybody. The inference thread goes on undisturbed, refusals come in batches, and over gRPC
the calls that pile up are reset by the library, outside of Python. It holds up replies by as much,
of which a request that stands in a queue anyway notices little. A loop that has more to do for a
request than the inference thread does not rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from predictor.admission import Admission

REST_S: Final = 0.0015


class Resting:
    """Lets one event loop rest. sleep: blocks the thread for so many seconds."""

    def __init__(self, admission: Admission, sleep: Callable[[float], None] = time.sleep) -> None:
        self._admission = admission
        self._sleep = sleep
        self._due = False

    def refused(self) -> None:
        """Somebody was refused in this turn of the running loop."""
        if not self._due and self._admission.waits_for_inference():
            self._due = True
            asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        self._due = False
        self._sleep(REST_S)
