"""What a model reads: int-ID tensors.

Symbols: U users (1 in a request), N candidates, Su and Si slots of a side, L sequence capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Tensors:
    """The int-ID tensors of one request, or of U requests at once.

    user_slots: (U, Su). item_slots: (N, Si). sequences: name -> (U, L), newest first, 0 behind the
    length. lengths: name -> (U,). All int32; slots in the service plan's order.
    """

    user_slots: Ids
    item_slots: Ids
    sequences: dict[str, Ids]
    lengths: dict[str, Ids]

    def expand(self) -> Ids:
        """(N, Su + Si): each candidate's row with the user's slots in front.

        Raises ValueError unless there is exactly one user.
        """
        if len(self.user_slots) != 1:
            raise ValueError(f"expand: needs the tensors of one user, got {len(self.user_slots)}")
        n, su = len(self.item_slots), self.user_slots.shape[1]
        wide = np.empty((n, su + self.item_slots.shape[1]), np.int32)  # (N, Su + Si)
        wide[:, :su] = self.user_slots
        wide[:, su:] = self.item_slots
        return wide
