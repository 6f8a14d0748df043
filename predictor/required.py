"""Fail closed: a request is refused for a view that its service cannot do without.

A row that is not there is no failure: an unknown user is served. One that could not be read, or
that is damaged, is.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregation.program import Assembled, ServiceProgram
from schemas.errors import RequestError
from schemas.status import FAILED, Status

_FIRST_FAILED: Final = int(min(FAILED))
_UNAVAILABLE: Final = 503


def check_required(program: ServiceProgram, assembled: Assembled) -> None:
    """Raises RequestError (503) naming the first required view of which a row failed."""
    for name in program.service.required:
        for index, view in enumerate(program.user_views):
            if view.name == name:
                _check(name, assembled.user_status[index : index + 1])
        for index, view in enumerate(program.item_views):
            if view.name == name:
                _check(name, assembled.item_status[:, index])


def _check(name: str, status: NDArray[np.uint8]) -> None:
    """status: (n,) of a view's rows."""
    worst = int(status.max(initial=0))
    if worst >= _FIRST_FAILED:
        count = int((status >= _FIRST_FAILED).sum())
        raise RequestError(
            f"views.{name}",
            required="its rows, without which the service answers nothing",
            got=f"{Status(worst).name} for {count} of {len(status)}",
            do="try again later; see whether the store answers",
            status=_UNAVAILABLE,
        )
