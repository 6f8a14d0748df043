"""A feature service's request program: stored rows → value blocks → tensors.

    keys(user, candidates) → one MGET → decode → finalise at now_ms → value blocks → tensors

`tensors` is a pure function of the value blocks, and the blocks are what the rank log keeps: a
tensor rebuilt from the log equals the served one bit for bit.

The sides are independent until `combine`: the items' block, and the ids of all their slots that no
user has a part in, may come from a cache.

Symbols: U users (1 in a request), N candidates, Vu and Vi views of a side, Si slots of the item
side, So of them without the crosses of pairs, which come last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.block import SideBlock, SideProgram
from aggregation.crosses import OPERATORS
from aggregation.crossing import CrossProgram
from aggregation.native.library import Kernels, kernels
from aggregation.native.tensors import NativeTensors
from aggregation.sequence_slots import SequenceProgram
from aggregation.slots import Column, Records, SlotProgram
from aggregation.tensors import Ids, Tensors
from schemas.errors import PlanError
from schemas.layout import NUMPY
from schemas.plan import CrossPlan, Plan, SequenceSlotPlan, Side, SlotPlan
from schemas.status import Status
from schemas.stored import RowKeys
from schemas.values import Block, value_name

Array = NDArray[Any]

_PART: Final = 8_192  # candidates at once: what is made of them on the way stays in the cache


@dataclass(frozen=True, slots=True)
class Assembled:
    """All that a request needs of the store, and all that its log record says of it.

    user_values: (1,) and item_values: (N,) blocks. user_status: (Vu,) and item_status: (N, Vi) u1
    Status, views in the program's order. user_fences: (Vu,) and item_fences: (N, Vi) of
    `schemas.row.FENCE`, (0, -1) where no row was read. newest_ms: the newest event time in any row,
    0 for none: a replay refuses rows that are newer than its clock.
    """

    user_values: Block
    item_values: Block
    user_status: NDArray[np.uint8]
    item_status: NDArray[np.uint8]
    user_fences: Array
    item_fences: Array
    newest_ms: int
    tensors: Tensors


class ServiceProgram:
    """The compiled program of one service. Immutable; safe to share between threads.

    library: finds the kernels to compute with; numpy does without. Raises PlanError for a service
    the plan does not define, or cannot compute.
    """

    def __init__(
        self,
        plan: Plan,
        service_name: str,
        library: Callable[[], Kernels | None] = kernels,
    ) -> None:
        self.plan = plan
        self.service = plan.service(service_name)
        self.library = found = library()
        self._user = SideProgram(plan, self.service, "user", found)
        self._item = SideProgram(plan, self.service, "item", found)
        self.user_views, self.item_views = self._user.views, self._item.views
        self.user_dtype, self.item_dtype = self._user.dtype, self._item.dtype
        for slot in (*self.service.user_slots, *self.service.item_slots):
            self._check_scalar(slot)
        for sequence in self.service.sequences:
            self._check_vector(sequence)
        self._user_slots = self._slots("user", self.user_dtype)
        self._item_slots = self._slots("item", self.item_dtype)
        self.own_slots = len(self.service.slots("item")) - len(self.service.crosses_of("pair"))
        self._own_slots = self._slots("item", self.item_dtype, slice(None, self.own_slots))
        self._pair_slots = self._slots("item", self.item_dtype, slice(self.own_slots, None))
        self._sequences = SequenceProgram(self.service.sequences, self.user_dtype)
        dtypes: dict[Side, np.dtype[np.void]] = {"user": self.user_dtype, "item": self.item_dtype}
        self._crosses = CrossProgram(plan, self.service, dtypes)
        self._native = None if found is None else NativeTensors(found, plan, self.service, dtypes)

    def _slots(
        self, side: Side, dtype: np.dtype[np.void], some: slice = slice(None)
    ) -> SlotProgram:
        columns = []
        for slot in self.service.slots(side)[some]:
            if isinstance(slot, CrossPlan):
                result = NUMPY[OPERATORS[slot.operator].result]
                columns.append(Column(slot.transform, result))
            else:
                field = value_name(slot.view, slot.feature)
                columns.append(Column(slot.transform, dtype[field], field))
        return SlotProgram(columns, dtype)

    def _check_scalar(self, slot: SlotPlan) -> None:
        stored = self.plan.view(slot.view).feature(slot.feature).capacity
        if stored:
            raise PlanError(
                f"{self.service.name}.{slot.name}",
                required="a scalar feature",
                got=f"{slot.feature}, a vector of {stored}",
                do="declare a sequence slot",
            )

    def _check_vector(self, slot: SequenceSlotPlan) -> None:
        stored = self.plan.view(slot.view).feature(slot.feature).capacity
        if not 0 < slot.capacity <= stored:
            raise PlanError(
                f"{self.service.name}.{slot.name}",
                required=f"a capacity of 1 to {stored}, as {slot.feature} holds",
                got=str(slot.capacity),
            )

    # --- keys -------------------------------------------------------------------------------

    def user_keys(self, user_id: int) -> list[str]:
        """The store keys of a user's rows, (Vu,)."""
        return self._user.keys([int(user_id)])

    def item_keys(self, item_ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The store keys of N items' rows, (Vi * N,): all of the first view, then of the next."""
        return self._item.keys(np.asarray(item_ids, np.int64).tolist())

    def keys(self, user_id: int, item_ids: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """All keys of a request, for one MGET: `user_keys`, then `item_keys`."""
        return self.user_keys(user_id) + self.item_keys(item_ids)

    def user_row_keys(self, user_id: int) -> list[RowKeys]:
        """`user_keys` for `read_rows`."""
        return self._user.row_keys(np.array([user_id], np.int64))

    def item_row_keys(self, item_ids: Sequence[int] | NDArray[np.int64]) -> list[RowKeys]:
        """`item_keys` for `read_rows`."""
        return self._item.row_keys(np.asarray(item_ids, np.int64))

    def row_keys(self, user_id: int, item_ids: Sequence[int] | NDArray[np.int64]) -> list[RowKeys]:
        """`keys` for `read_rows`."""
        return self.user_row_keys(user_id) + self.item_row_keys(item_ids)

    # --- rows → values → tensors ------------------------------------------------------------

    def assemble(
        self,
        raw: Sequence[bytes | None],
        user_id: int,
        item_ids: Sequence[int] | NDArray[np.int64],
        now_ms: int,
        failed: Status | None = None,
    ) -> Assembled:
        """What the store answered → value blocks and tensors.

        raw: the values of `keys(user_id, item_ids)`, in that order; not looked at when `failed`
        (TIMEOUT or STORE_ERROR) says that the read failed as a whole. A row that is not there is
        the empty state of a streamed view (counts 0, sequences empty) and null for a batch view;
        a CORRUPT row, or a failed read, is null for both. Raises ValueError for a `raw` of another
        length.
        """
        split = len(self.user_views)
        expected = split + len(item_ids) * len(self.item_views)
        if failed is None and len(raw) != expected:
            raise ValueError(f"assemble: needs {expected} values, one a key, got {len(raw)}")
        user = self.user_block(raw[:split], user_id, now_ms, failed)
        return self.combine(user, self.item_block(raw[split:], item_ids, now_ms, failed))

    def user_block(
        self, raw: Sequence[bytes | None], user_id: int, now_ms: int, failed: Status | None = None
    ) -> SideBlock:
        """A user's block. raw: the values of `user_keys`, not looked at when `failed`."""
        if failed is not None:
            return self._user.failed(1, failed)
        return self._user.block(raw, np.array([user_id], np.int64), now_ms)

    def item_block(
        self,
        raw: Sequence[bytes | None],
        item_ids: Sequence[int] | NDArray[np.int64],
        now_ms: int,
        failed: Status | None = None,
    ) -> SideBlock:
        """N items' block. raw: the values of `item_keys`, not looked at when `failed`."""
        if failed is not None:
            return self._item.failed(len(item_ids), failed)
        return self._item.block(raw, np.asarray(item_ids, np.int64), now_ms)

    def own_ids(self, item: SideBlock) -> Ids:
        """The ids of N items' slots that do not depend on a user. (N, So) int32."""
        if self._native is not None:
            return self._native.own_ids(item.values)
        records = Records.of(item.values, item.null)
        sheet = self._own_slots.sheet(records)
        self._crosses.fill_item(records, sheet)
        return sheet.ids()

    def combine(self, user: SideBlock, item: SideBlock, own_ids: Ids | None = None) -> Assembled:
        """Both sides of one request → tensors.

        user: of one user. own_ids: `own_ids(item)`, (N, So), where they are known.
        """
        tensors = None
        if self._native is not None:
            tensors = self._native(user.values, item.values, None, own_ids)
        if tensors is None:
            users = Records.of(user.values, user.null)
            items = Records.of(item.values, item.null)
            tensors = self._tensors(users, items, None, own_ids)
        return Assembled(
            user_values=user.values,
            item_values=item.values,
            user_status=user.status[0],
            item_status=item.status,
            user_fences=user.fences[0],
            item_fences=item.fences,
            newest_ms=max(user.newest_ms, item.newest_ms),
            tensors=tensors,
        )

    def tensors(
        self, user_values: Block, item_values: Block, user_of: NDArray[np.integer] | None = None
    ) -> Tensors:
        """Value blocks → tensors: a pure function of the blocks and the plan.

        user_values: (U,) of `user_dtype`. item_values: (N,) of `item_dtype`. A request has one
        user; training passes many requests' blocks at once, and with them user_of, (N,), the record
        of each candidate's user. Each row of the result depends on its own record only, a
        candidate's crosses on its user's too. Raises ValueError for crosses of many users without
        user_of.
        """
        if self._native is not None and self._native.takes(user_values, item_values):
            tensors = self._native(user_values, item_values, user_of)
            if tensors is not None:
                return tensors
        return self._tensors(Records.of(user_values), Records.of(item_values), user_of)

    def _tensors(
        self,
        user: Records,
        item: Records,
        user_of: NDArray[np.integer] | None,
        own_ids: Ids | None = None,
    ) -> Tensors:
        sequences, lengths = self._sequences(user.values)
        sheet = self._user_slots.sheet(user)
        self._crosses.fill_user(user, sheet)
        if own_ids is None:
            items = self._item_ids(user, item, user_of)
        else:
            items = self._with_pairs(own_ids, user, item)
        return Tensors(sheet.ids(), items, sequences, lengths)

    def _item_ids(self, user: Records, item: Records, user_of: NDArray[np.integer] | None) -> Ids:
        """(N, Si), in parts: training passes millions of candidates."""
        n = len(item.values)
        if n > _PART:
            ids = np.empty((n, len(self.service.slots("item"))), np.int32)  # (N, Si)
            for start in range(0, n, _PART):
                part = slice(start, start + _PART)
                owners = None if user_of is None else user_of[part]
                ids[part] = self._item_ids(user, item.part(part), owners)
            return ids
        sheet = self._item_slots.sheet(item)
        self._crosses.fill_item(item, sheet)
        self._crosses.fill_pairs(user, item, user_of, sheet)
        return sheet.ids()

    def _with_pairs(self, own_ids: Ids, user: Records, item: Records) -> Ids:
        """(N, Si): the items' own ids, and their crosses with one user."""
        ids = np.empty((len(own_ids), len(self.service.slots("item"))), np.int32)  # (N, Si)
        ids[:, : self.own_slots] = own_ids
        if ids.shape[1] > self.own_slots:
            sheet = self._pair_slots.sheet(item)
            self._crosses.fill_pairs(user, item, None, sheet, self.own_slots)
            ids[:, self.own_slots :] = sheet.ids()
        return ids
