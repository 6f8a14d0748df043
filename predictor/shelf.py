"""What lies in a package directory, and the removal of packages that nothing will serve again.

A service holds what it serves in memory and reads a package once, when the pointer names it. So
whatever CURRENT does not name may go; the newest are kept to go back to.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from predictor.card import CARD, VERSION, read_card
from predictor.package import current_version
from predictor.spec import KINDS, Kind
from schemas.errors import PackageError, SettingsError

#: What a writer that died left behind is as old as this before it is taken for that, ms.
LEFT_MS: Final = 3_600_000
_ASIDE: Final = ".pruned-"
_DRAFT: Final = ".draft-"

State = Literal["current", "earlier", "damaged", "left"]


@dataclass(frozen=True, slots=True)
class Shelved:
    """One directory. bytes: of its files. trained_ms, service, fingerprint, auc: of its card.

    state: `current` is what the pointer names; `damaged` has a card that cannot be read; `left` is
    what a writer or a prune that died left behind.
    """

    kind: Kind
    name: str
    state: State
    bytes: int
    trained_ms: int = 0
    service: str = ""
    fingerprint: str = ""
    auc: float | None = None


def shelf(root: Path, now_ms: int) -> list[Shelved]:
    """Everything below a package directory, by kind, the newest first.

    now_ms: a draft younger than LEFT_MS may be being written, and is no leftover. Raises
    PackageError for a pointer that names no version.
    """
    found = []
    for kind in KINDS:
        current = current_version(root, kind)
        own = [_shelved(kind, path, current) for path in _directories(root / kind, now_ms)]
        found += sorted(own, key=lambda each: (-each.trained_ms, each.name))
    return found


def prune_packages(root: Path, keep: int, now_ms: int, remove: bool) -> list[Shelved]:
    """What was removed, or with remove=False would be: all but the current and, of each kind, the
    `keep` newest that can be read.

    One that is published meanwhile stays. Raises SettingsError for a `keep` below 0, PackageError.
    """
    if keep < 0:
        raise SettingsError("--keep", required="0 or more", got=str(keep))
    gone = []
    for kind in KINDS:
        of_kind = [each for each in shelf(root, now_ms) if each.kind == kind]
        usable = [each for each in of_kind if each.state in ("current", "earlier")]
        kept = {each.name for each in usable[:keep]}
        for each in of_kind:
            if each.state == "current" or each.name in kept:
                continue
            if not remove or _removed(root, each):
                gone.append(each)
    return gone


def _directories(directory: Path, now_ms: int) -> Iterator[Path]:
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if not path.is_dir() or path.is_symlink():
            continue
        drafted_ms = path.stat().st_mtime * 1_000
        left = path.name.startswith(_DRAFT) and drafted_ms < now_ms - LEFT_MS
        if left or path.name.startswith(_ASIDE) or VERSION.fullmatch(path.name):
            yield path


def _shelved(kind: Kind, path: Path, current: str | None) -> Shelved:
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    if not VERSION.fullmatch(path.name):
        return Shelved(kind, path.name, "left", size)
    state: State = "current" if path.name == current else "earlier"
    try:
        card = read_card((path / CARD).read_bytes(), str(path / CARD))
    except (OSError, PackageError):
        return Shelved(kind, path.name, "damaged" if state == "earlier" else state, size)
    auc = card.metrics.get("validation_auc")
    about = (card.trained_ms, card.service, card.fingerprint, auc)
    return Shelved(kind, path.name, state, size, *about)


def _removed(root: Path, package: Shelved) -> bool:
    """Move it aside, look at the pointer once more, and remove it; False where it is current now.

    A prune that dies in between leaves a directory that is no package, which the next one removes.
    """
    path = root / package.kind / package.name
    aside = path
    if package.state != "left":
        aside = path.with_name(_ASIDE + package.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
        if current_version(root, package.kind) == package.name:
            os.rename(aside, path)
            return False
    shutil.rmtree(aside)
    return True
