"""Which models are live: what the CURRENT pointers of a package directory name, by their cards.

Reads cards only, no weights: whoever changes a plan asks here what that would retire.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from predictor.card import CARD, CURRENT, VERSION, read_card
from predictor.spec import KINDS, Kind
from schemas.errors import PackageError


@dataclass(frozen=True)
class LiveModel:
    """A published package. service, fingerprint: what it was trained for."""

    kind: Kind
    version: str
    service: str
    fingerprint: str


def live_models(packages: Path) -> tuple[LiveModel, ...]:
    """The published model of each kind; nothing where none was published.

    Raises PackageError for a pointer or a card that cannot be read: whether its model would be
    retired is not known.
    """
    found = []
    for kind in KINDS:
        pointer = packages / kind / CURRENT
        if not pointer.exists():
            continue
        version = _text(pointer, 64).strip()
        if not VERSION.fullmatch(version):
            raise PackageError(f"{kind}/{CURRENT}", required="16 hex digits", got=repr(version))
        path = packages / kind / version / CARD
        card = read_card(_text(path, 1 << 20).encode(), f"{kind}/{version}/{CARD}")
        found.append(LiveModel(kind, version, card.service, card.fingerprint))
    return tuple(found)


def _text(path: Path, most: int) -> str:
    try:
        return path.read_bytes()[:most].decode("utf-8", "replace")
    except OSError as error:
        raise PackageError(
            str(path),
            required="a readable file",
            got=str(error.strerror),
            do="publish the package again, or remove the pointer",
        ) from None
