"""What a package is, as data: its files, its card, and what a card must say to serve here."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import field
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from predictor.spec import STRICT, FineSpec, InputSpec, Kind, NetworkSpec, load_spec
from schemas.errors import PackageError

FORMAT: Final = 1
CARD: Final = "model.json"
WEIGHTS: Final = "weights.safetensors"
WARMUP: Final = "warmup.safetensors"
GOLDEN: Final = "golden.safetensors"
FILES: Final = (GOLDEN, WARMUP, WEIGHTS)
CURRENT: Final = "CURRENT"
VERSION: Final = re.compile(r"[0-9a-f]{16}")

Finite = Annotated[float, Field(allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=STRICT)
class ModelCard:
    """model.json.

    score: fine models only, the weight of each task's probability in the final score.
    tolerance: how far a golden logit may be off, absolute.
    files: sha256 of each other file. metrics: what the trainer measured.
    """

    format: int
    kind: Kind
    service: str
    fingerprint: str
    spec: dict[str, Any]
    files: dict[str, Digest]
    tolerance: Annotated[float, Field(ge=0, le=0.01)]
    trained_ms: int
    score: dict[str, Finite] = field(default_factory=dict)
    metrics: dict[str, Finite] = field(default_factory=dict)


_CARDS: Final = TypeAdapter(ModelCard)


@dataclass(frozen=True, config=STRICT)
class Expected:
    """What a package must be made for to serve here."""

    kind: Kind
    service: str
    fingerprint: str
    inputs: InputSpec


def dump_card(card: ModelCard) -> bytes:
    """model.json: sorted keys, two-space indent, trailing newline."""
    data = _CARDS.dump_python(card, mode="json")
    return (json.dumps(data, indent=2, sort_keys=True) + "\n").encode()


def version_of(card_bytes: bytes) -> str:
    """The version that a model.json gives its package: 16 hex digits."""
    return hashlib.sha256(card_bytes).hexdigest()[:16]


def read_card(text: bytes, where: str) -> ModelCard:
    """A card as it is written, whatever it was made for. Raises PackageError for anything else."""
    try:
        return _CARDS.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join((where, *map(str, first["loc"])))
        raise PackageError(place, required=f"a card of format {FORMAT}", got=first["msg"]) from None


def load_card(text: bytes, expected: Expected, where: str) -> tuple[ModelCard, NetworkSpec]:
    """The card and its network's spec. Raises PackageError unless both are as expected."""
    card = read_card(text, where)
    _require(f"{where}.format", FORMAT, card.format)
    _require(f"{where}.kind", expected.kind, card.kind)
    _require(f"{where}.service", expected.service, card.service)
    _require(f"{where}.fingerprint", expected.fingerprint, card.fingerprint)
    _require(f"{where}.files", sorted(FILES), sorted(card.files))
    spec = load_spec(card.spec, f"{where}.spec")
    _require(f"{where}.spec.kind", card.kind, spec.kind)
    _require(f"{where}.spec.inputs", expected.inputs, spec.inputs)
    _require(f"{where}.score", sorted(tasks_of(spec)), sorted(card.score))
    return card, spec


def tasks_of(spec: NetworkSpec) -> tuple[str, ...]:
    """The tasks of a fine network, none for a two-tower."""
    return spec.tasks if isinstance(spec, FineSpec) else ()


def _require(where: str, required: object, got: object) -> None:
    if required != got:
        raise PackageError(
            where,
            required=_brief(required),
            got=_brief(got),
            do="train a model for the plan that is served",
        )


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
