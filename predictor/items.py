"""What a request needs of the store, and what it is assembled from: the item cache is asked first.

A request with a clock of its own (a replay, a test) is answered from the store alone: it may have
waited for rows that the cache gets a moment later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aggregation.cache.reader import FoundItems, ItemSource
from aggregation.program import Assembled, ServiceProgram
from predictor.record import Query
from schemas.status import Status
from schemas.stored import RowKeys


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. found: what the cache has of its candidates, None where nothing.

    item_ids: (m,) the candidates whose rows are to be read, with the user's.
    """

    program: ServiceProgram
    query: Query
    found: FoundItems | None
    item_ids: NDArray[np.int64]

    def row_keys(self) -> list[RowKeys]:
        """The rows to read, in one round trip."""
        return self.program.row_keys(self.query.user_id, self.item_ids)

    def assemble(self, raw: Sequence[bytes | None], failed: Status | None = None) -> Assembled:
        """raw: what `row_keys` hold; not looked at when `failed` says that the read failed."""
        program, query = self.program, self.query
        if self.found is None:
            return program.assemble(raw, query.user_id, self.item_ids, query.now_ms, failed)
        users = len(program.user_views)
        user = program.user_block(raw[:users], query.user_id, query.now_ms, failed)
        side = self.found.completed(raw[users:], failed)
        return program.combine(user, side.block, side.own_ids)


def ask(program: ServiceProgram, query: Query, items: ItemSource | None) -> Asked:
    """Look the candidates up. items: None where there is no cache."""
    if items is not None and query.now_ms == query.received_ms:
        found = items.look_up(program, query.candidate_ids, query.now_ms)
        if found is not None:
            return Asked(program, query, found, found.missing_ids())
    return Asked(program, query, None, query.candidate_ids)
