"""Types are checked as typeguard does it at once, from the first call on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import typeguard
from feast import Entity, FeatureView

from catalog import lazy_checks

AT_ONCE = lazy_checks._at_once
NOT_COPIED = {"__dict__", "__weakref__"}


class Plain:
    """What Feast's classes are made of."""

    def __init__(self, number: int) -> None:
        self._number = number

    def times(self, factor: int, *, plus: int = 0) -> int:
        return self._number * factor + plus

    @classmethod
    def of(cls, number: int) -> Plain:
        return cls(number)

    @staticmethod
    def twice(number: int) -> int:
        return 2 * number

    @property
    def number(self) -> int:
        return self._number

    @number.setter
    def number(self, number: int) -> None:
        self._number = number


@dataclass
class Made:
    """Its `__init__` has no source."""

    number: int

    def double(self, factor: int) -> int:
        return self.number * factor


def function(number: int) -> int:
    return number


def copied(source: type) -> Any:
    """The same class anew: decorating changes it."""
    own = {name: each for name, each in vars(source).items() if name not in NOT_COPIED}
    made = type(source.__name__, source.__bases__, own)
    made.__qualname__ = source.__qualname__
    return made


def set_number(one: Any) -> None:
    one.number = "3"


WRONG: list[Callable[[Any], object]] = [
    lambda plain: plain("3"),
    lambda plain: plain(3).times("3"),
    lambda plain: plain(3).times(3, plus=None),
    lambda plain: plain.of("3"),
    lambda plain: plain.twice([3]),
    lambda plain: set_number(plain(3)),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_refused_is_what_is_refused_at_once(wrong: Callable[[Any], object]) -> None:
    said = []
    for decorator in (AT_ONCE, lazy_checks.typechecked):
        with pytest.raises(typeguard.TypeCheckError) as refused:
            wrong(decorator(copied(Plain)))
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_what_is_right_is_done() -> None:
    plain = lazy_checks.typechecked(copied(Plain))
    one = plain(3)
    assert (one.times(4, plus=1), one.number, plain.twice(4)) == (13, 3, 8)
    one.number = 5
    assert (one.number, one.times(2), plain.__init__.__name__) == (5, 10, "__init__")


def test_what_has_no_source_is_left_alone() -> None:
    made = lazy_checks.typechecked(copied(Made))
    assert made("ab").number == "ab"
    assert made(2).double(3) == 6
    with pytest.raises(typeguard.TypeCheckError):
        made(2).double("3")


@pytest.mark.parametrize("decorate", [lazy_checks.typechecked, lazy_checks.typechecked()])
def test_a_function_is_instrumented_when_it_is_called_first(
    decorate: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def counted(target: Any, **options: Any) -> Any:
        made.append(target)
        return AT_ONCE(target, **options)

    monkeypatch.setattr(lazy_checks, "_at_once", counted)
    checked = decorate(function)
    assert not made
    assert [checked(1), checked(2)] == [1, 2]
    assert made == [function]
    with pytest.raises(typeguard.TypeCheckError):
        checked("1")


def test_feasts_own_classes_check_what_they_are_given() -> None:
    assert typeguard.typechecked is lazy_checks.typechecked
    with pytest.raises(typeguard.TypeCheckError, match=r'"name" .int. is not an instance of str'):
        Entity(name=3)  # type: ignore[arg-type]
    with pytest.raises(typeguard.TypeCheckError, match=r'"name" .int. is not an instance of str'):
        FeatureView(name=3, source=None)  # type: ignore[arg-type]
