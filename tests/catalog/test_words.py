"""The words that editors complete are those that compile."""

from __future__ import annotations

from itertools import product
from typing import get_args

from aggregation.matching import ACTION_COLUMNS, ANY_ACTION
from catalog.selections import ACTIONS
from catalog.sequences import AGE
from catalog.words import Action, ActionColumn, Column, SequenceColumn


def test_words_are_what_an_action_has() -> None:
    assert get_args(Action) == (*ACTIONS, ANY_ACTION)
    assert get_args(Column) == tuple(ACTION_COLUMNS)
    assert get_args(SequenceColumn) == (*ACTION_COLUMNS, AGE)
    pairs = product(get_args(Action), get_args(SequenceColumn))
    assert get_args(ActionColumn) == tuple(".".join(pair) for pair in pairs)
