"""Value blocks → tensors by the kernels: one call a request.

What `aggregation.slots`, `crossing` and `sequence_slots` say, with ids equal to theirs.

Symbols: U users (1 in a request), N candidates, Su and Si slots of a side, So of the items' that no
user has a part in, L capacity of a sequence.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.crosses import OPERATORS as TABLE
from aggregation.native.layouts import (
    BLOCKS,
    OPERATORS,
    Field,
    Pool,
    Program,
    SequenceSlot,
    Slot,
)
from aggregation.native.library import Kernels, address, address_of_new, plain
from aggregation.tensors import Ids, Tensors
from schemas.layout import NUMPY
from schemas.plan import CrossPlan, OperandPlan, Plan, SequenceSlotPlan, ServicePlan, Side, SlotPlan
from schemas.values import NULL_FIELD, Block, value_name


class NativeTensors:
    """One service's slots, compiled for the kernels. Immutable; safe to share between threads."""

    def __init__(
        self,
        library: Kernels,
        plan: Plan,
        service: ServicePlan,
        dtypes: Mapping[Side, np.dtype[np.void]],
    ) -> None:
        self._plan, self._pool = plan, Pool(dtypes)
        self._user_dtype, self._item_dtype = dtypes["user"], dtypes["item"]
        self._capacities = [(slot.name, slot.capacity) for slot in service.sequences]
        self._entries = sum(slot.capacity for slot in service.sequences)
        self._user_width = len(service.slots("user"))
        self._item_width = len(service.slots("item"))
        self._own_width = self._item_width - len(service.crosses_of("pair"))
        self._pairs = self._own_width < self._item_width
        users, items = self._slots(service, "user"), self._slots(service, "item")
        sequences = [self._sequence(slot) for slot in service.sequences]
        blocks: list[Any] = [self._user_dtype.fields, self._item_dtype.fields]
        self._program = Program(
            self._pool.structures(users, Slot),
            self._pool.structures(items, Slot),
            self._pool.structures(sequences, SequenceSlot),
            self._user_width,
            self._item_width,
            self._own_width,
            len(sequences),
            *(fields[NULL_FIELD][1] for fields in blocks),
        )
        self._at = ctypes.addressof(self._program)
        self._tensors, self._own_ids = library.tensors, library.own_ids

    def __call__(
        self,
        user: Block,
        item: Block,
        user_of: NDArray[np.integer] | None = None,
        own: Ids | None = None,
    ) -> Tensors | None:
        """As `ServiceProgram.tensors`. own: `own_ids(item)`, where they are known.

        None where user_of names a record that is not there. Raises ValueError for crosses of many
        users without user_of.
        """
        U, N = len(user), len(item)
        owners = 0
        if U != 1 and self._pairs:
            if user_of is None:
                raise ValueError(f"tensors: needs user_of for crosses of {U} users, got none")
            user_of = plain(user_of, np.int64)
            owners = address(user_of)
        wide, high = U * self._user_width, N * self._item_width
        lengths = wide + high
        entries = lengths + U * len(self._capacities)
        out = np.empty(entries + U * self._entries, np.int32)
        blocks = BLOCKS.pack(
            address(user),
            address(item),
            user.strides[0],
            item.strides[0],
            U,
            N,
            owners,
            0 if own is None else address(own),
            0 if own is None else own.strides[0],
        )
        if self._tensors(self._at, blocks, address_of_new(out)):
            return None
        listed, long = {}, {}
        for name, capacity in self._capacities:
            listed[name] = out[entries : entries + U * capacity].reshape(U, capacity)
            long[name] = out[lengths : lengths + U]
            entries, lengths = entries + U * capacity, lengths + U
        users = out[:wide].reshape(U, self._user_width)
        return Tensors(users, out[wide : wide + high].reshape(N, self._item_width), listed, long)

    def own_ids(self, item: Block) -> Ids:
        """As `ServiceProgram.own_ids`: (N, So) int32."""
        out = np.empty((len(item), self._own_width), np.int32)  # (N, So)
        blocks = BLOCKS.pack(0, address(item), 0, item.strides[0], 0, len(item), 0, 0, 0)
        self._own_ids(self._at, blocks, address_of_new(out))
        return out

    def takes(self, user: Block, item: Block) -> bool:
        """Whether blocks are laid out as those that were compiled for."""
        return user.dtype == self._user_dtype and item.dtype == self._item_dtype

    # --- compiling ---------------------------------------------------------------------------

    def _slots(self, service: ServicePlan, side: Side) -> list[Slot]:
        """Own slots first, then pairs; crosses of the same operands side by side."""
        first: dict[tuple[bool, Any], int] = {}
        keyed = []
        for column, slot in enumerate(service.slots(side)):
            paired = isinstance(slot, CrossPlan) and slot.scope == "pair"
            operands = slot.operands if isinstance(slot, CrossPlan) else column
            place = first.setdefault((paired, operands), column)
            keyed.append(((paired, place, column), slot))
        keyed.sort(key=lambda each: each[0])
        made = [
            self._cross(key[-1], slot)
            if isinstance(slot, CrossPlan)
            else self._slot(key[-1], side, slot)
            for key, slot in keyed
        ]
        for one, (key, _), (before, _) in zip(made[1:], keyed[1:], keyed, strict=False):
            one.again = key[:2] == before[:2]
        return made

    def _slot(self, column: int, side: Side, slot: SlotPlan) -> Slot:
        name = value_name(slot.view, slot.feature)
        dtype = (self._user_dtype if side == "user" else self._item_dtype)[name]
        field = self._pool.field(side, name, slot.transform.sentinels)
        transform = self._pool.transform(slot.transform, dtype)
        floating = dtype.kind == "f"
        return Slot(column, 0, floating, left=field, transform=transform)

    def _cross(self, column: int, cross: CrossPlan) -> Slot:
        left, right = (self._operand(each) for each in cross.operands)
        dtype = NUMPY[TABLE[cross.operator].result]
        return Slot(
            column,
            1 + OPERATORS.index(cross.operator),
            dtype.kind == "f",
            0,
            left,
            right,
            cross.prior * cross.weight,
            cross.weight,
            self._pool.transform(cross.transform, dtype),
        )

    def _operand(self, operand: OperandPlan) -> Field:
        view = self._plan.view(operand.view)
        scalar = view.feature(operand.feature).capacity == 0
        sentinels = operand.sentinels if scalar else ()
        name = value_name(operand.view, operand.feature)
        return self._pool.field(view.entity, name, sentinels)

    def _sequence(self, slot: SequenceSlotPlan) -> SequenceSlot:
        name = value_name(slot.view, slot.feature)
        field = self._pool.field("user", name, slot.transform.sentinels)
        transform = self._pool.transform(slot.transform, self._user_dtype[name].base)
        return SequenceSlot(slot.capacity, field, transform)
