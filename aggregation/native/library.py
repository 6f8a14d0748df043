"""Finds the built kernels.

Who can compute either way takes the library as an argument: `kernels()` unless a caller says
otherwise, None for numpy.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from aggregation.native.build import BUILT, sources_digest

log: Final = logging.getLogger(__name__)


#: name, what it takes, what it gives: ctypes would pass addresses as ints of 32 bits.
Declared = tuple[tuple[str, tuple[type[Any], ...], type[Any] | None], ...]

_AT, _WHOLE, _BYTES = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p

HOLDING: Final[Declared] = (
    ("kernel_sources", (), _BYTES),
    ("tensors", (_AT, _BYTES, _AT), _WHOLE),
    ("own_ids", (_AT, _BYTES, _AT), _WHOLE),
    ("sizes", (_AT,), None),
    ("rows_to_values", (_AT, _BYTES), _WHOLE),
    ("rows_record_bytes", (_WHOLE,), _WHOLE),
    ("gather", (_AT, _AT, _WHOLE, _AT, _WHOLE, _WHOLE, _AT, _AT), _WHOLE),
)
FREE: Final[Declared] = (
    ("network_lanes", (), _WHOLE),
    ("network_sizes", (_AT,), None),
    ("tower_scratch", (_AT,), _WHOLE),
    ("fine_scratch", (_AT,), _WHOLE),
    ("tower_scores", (_AT, _BYTES, _AT, _AT), _WHOLE),
    ("fine_scores", (_AT, _BYTES, _AT, _AT), _WHOLE),
)


class Kernels(ctypes.PyDLL):
    """The library. Its functions hold the interpreter's lock while they run; those of `free`, which
    take longer, give it up."""

    free: ctypes.CDLL

    def declare(self) -> None:
        """What each function takes and gives."""
        self.free = ctypes.CDLL(self._name, handle=self._handle)
        for library, declared in ((self, HOLDING), (self.free, FREE)):
            for name, takes, gives in declared:
                function = getattr(library, name)
                function.argtypes, function.restype = takes, gives


def load(path: Path) -> Kernels | None:
    """The library at a path. None without one that is of the sources here."""
    if not path.exists():
        return None
    try:
        library = Kernels(str(path))
    except OSError as error:
        log.warning("kernels: %s; computing with numpy", error)
        return None
    said = library.kernel_sources
    said.restype = ctypes.c_char_p
    if said() != sources_digest().encode():
        log.warning("kernels: built from other sources; computing with numpy: run `make kernels`")
        return None
    library.declare()
    return library


@cache
def kernels() -> Kernels | None:
    """The library that was built here; None where none was."""
    return load(BUILT)


def plain(array: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """The same numbers as C reads them: in one piece, aligned. Itself where it is so already."""
    made = np.ascontiguousarray(array, dtype)
    return made if made.flags.aligned else made.copy()


def address(array: np.ndarray) -> int:
    """Where an array's first element lies. The array must outlive the call that it is given to."""
    found: int = array.ctypes.data
    return found


def address_of_new(array: np.ndarray) -> int:
    """The same, faster, of an array of plain numbers that was just made."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data)) if array.size else address(array)


def path_in_use() -> str:
    """How requests are computed here: `native` or `numpy`."""
    return "numpy" if kernels() is None else "native"
