"""Feast's checks of its arguments' types, each made when it is first needed.

Feast decorates its classes with typeguard's `typechecked`, which parses and compiles a whole module
again for each function of a class: half of what the import of Feast takes. Here a function is
instrumented when it is called for the first time, and checks from then on what it always did.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import typeguard

_at_once: Callable[..., Any] = typeguard.typechecked


def install() -> None:
    """For what is imported from now on. May be called again."""
    typeguard.typechecked = typechecked


def typechecked(target: Any = None, **options: Any) -> Any:
    """As typeguard's own, a decorator of functions and classes."""
    if target is None:
        return lambda found: typechecked(found, **options)
    if not inspect.isclass(target):
        return _checked(target, options) if inspect.isfunction(target) else _at_once(target)
    for name, own in list(vars(target).items()):
        checked = _member(own, target, options)
        if checked is not own:
            setattr(target, name, checked)
    return target


def _member(own: Any, owner: type, options: dict[str, Any]) -> Any:
    """What a class gets in place of one of its own attributes."""
    if inspect.isfunction(own) and _is_of(own, owner):
        return _checked(own, options)
    if isinstance(own, classmethod | staticmethod) and _is_of(own.__func__, owner):
        return type(own)(_checked(own.__func__, options))
    if isinstance(own, property):
        parts = (own.fget, own.fset, own.fdel)
        found = [part if part is None else _member(part, owner, options) for part in parts]
        return type(own)(found[0], found[1], found[2], own.__doc__)
    return own


def _is_of(function: Any, owner: type) -> bool:
    """Whether it was written in the class: what a base, a decorator or `dataclass` gave it has no
    source that could be instrumented."""
    return (
        inspect.isfunction(function)
        and not hasattr(function, "__wrapped__")
        and not function.__code__.co_filename.startswith("<")
        and function.__module__ == owner.__module__
        and function.__qualname__ == f"{owner.__qualname__}.{function.__name__}"
    )


def _checked(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    instrumented: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        if not instrumented:
            instrumented.append(_at_once(function, **options))
        return instrumented[0](*given, **named)

    return call
