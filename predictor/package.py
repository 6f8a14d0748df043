"""Model packages: directories of data, never of code, refused unless every byte is as written.

    <packages>/<kind>/CURRENT                        the version in use, replaced by rename
    <packages>/<kind>/<version>/model.json           the card: what it is, sha256 of the others
    <packages>/<kind>/<version>/weights.safetensors
    <packages>/<kind>/<version>/warmup.safetensors   requests scored before the first real one
    <packages>/<kind>/<version>/golden.safetensors   requests and the logits they must give

`version` is the first 16 hex digits of the sha256 of model.json, so the directory's name covers
every byte below it. The digests find damage; they are no signature.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from aggregation.native.library import Kernels, kernels
from predictor.card import (
    CARD,
    CURRENT,
    FILES,
    FORMAT,
    GOLDEN,
    VERSION,
    WARMUP,
    WEIGHTS,
    Expected,
    ModelCard,
    dump_card,
    load_card,
    tasks_of,
    version_of,
)
from predictor.folded import Scorer, folded
from predictor.native import native_scorer
from predictor.networks import Inputs, Network, build_network
from predictor.requests import (
    MAX_REQUESTS,
    check_request,
    pack_requests,
    pack_tensors,
    unpack_requests,
    unpack_tensors,
)
from predictor.spec import Kind, NetworkSpec, dump_spec
from schemas.errors import PackageError
from store.durable import replacing, sync_directory, write_synced

MAX_FILE_BYTES: Final = 4 << 30
_RESTORE: Final = "publish the package again from where it was trained"


class Model:
    """A loaded package: card, version (u64; `name` is its hex form), network in eval mode, whose
    weights stay as they are.

    weights: (T,) f32, the weight of each task in the final score; empty for a two-tower.
    native: what scores where there are kernels that know the network, else None: then torch does.
    """

    def __init__(
        self,
        card: ModelCard,
        version: str,
        network: Network,
        warmup: Sequence[Inputs],
        library: Callable[[], Kernels | None] = kernels,
    ) -> None:
        self.card = card
        self.name = version
        self.version = int(version, 16)
        self.network = network
        self.warmup = tuple(warmup)
        self.native = native_scorer(network, library())
        self._score: Scorer = self.native or folded(network)
        tasks = tasks_of(network.spec)
        self.weights = np.array([card.score[task] for task in tasks], np.float32)  # (T,)

    def logits(self, inputs: Inputs) -> NDArray[np.float32]:
        """(N,) of a two-tower, (N, T) of a fine network."""
        with torch.inference_mode():
            scores: NDArray[np.float32] = self._score(inputs).numpy()
        return scores


@dataclass(frozen=True)
class PackageDraft:
    """What a trainer hands over.

    requests: one-user inputs of real requests, at least one; they become warm-up and golden scores.
    trained_ms: the trainer's clock. score: see ModelCard.
    """

    network: Network
    service: str
    fingerprint: str
    requests: Sequence[Inputs]
    trained_ms: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    score: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 1e-3


# --- write ----------------------------------------------------------------------------------


def write_package(root: Path, draft: PackageDraft) -> Path:
    """Write `<root>/<kind>/<version>` durably and return it; it serves only once published.

    Raises PackageError for a draft that would be refused when loaded.
    """
    spec = draft.network.spec
    _check_draft(draft)
    draft.network.eval()
    with torch.inference_mode():
        scores = [draft.network(request) for request in draft.requests]
    blobs = {
        WEIGHTS: pack_tensors(draft.network.state_dict()),
        WARMUP: pack_requests(draft.requests),
        GOLDEN: pack_requests(draft.requests, scores),
    }
    card = ModelCard(
        format=FORMAT,
        kind=spec.kind,
        service=draft.service,
        fingerprint=draft.fingerprint,
        spec=dump_spec(spec),
        files={name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()},
        tolerance=draft.tolerance,
        trained_ms=draft.trained_ms,
        score=dict(draft.score),
        metrics=dict(draft.metrics),
    )
    blobs[CARD] = dump_card(card)
    return _place(root / spec.kind, version_of(blobs[CARD]), blobs)


def _check_draft(draft: PackageDraft) -> None:
    spec = draft.network.spec
    tasks = sorted(tasks_of(spec))
    if sorted(draft.score) != tasks or not 0 < len(draft.requests) <= MAX_REQUESTS:
        raise PackageError(
            "draft",
            required=f"1 to {MAX_REQUESTS} requests and a score weight for each of {tasks}",
            got=f"{len(draft.requests)} requests, weights for {sorted(draft.score)}",
        )
    for place, request in enumerate(draft.requests):
        if request.user_of is not None:
            raise PackageError(f"draft.requests[{place}]", required="one user", got="user_of")
        check_request(request, spec.inputs, f"draft.requests[{place}]")
    _check_finite(draft.network.state_dict(), "draft.network")


def publish_package(path: Path) -> None:
    """Make a written package the current one of its kind: one rename of the CURRENT pointer."""
    pointer = path.parent / CURRENT
    fresh = pointer.with_name(f".{CURRENT}.{path.name}")
    with replacing(pointer, fresh) as file:
        file.write(f"{path.name}\n".encode())


def current_version(root: Path, kind: Kind) -> str | None:
    """The version that CURRENT names, None where nothing was published.

    Raises PackageError for a pointer that names no version, a path for instance.
    """
    pointer = root / kind / CURRENT
    try:
        text = pointer.read_bytes()[:64].decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(pointer, error) from None
    if not VERSION.fullmatch(text):
        raise PackageError(f"{kind}/{CURRENT}", required="16 hex digits", got=repr(text))
    return text


def _place(directory: Path, version: str, blobs: Mapping[str, bytes]) -> Path:
    """Write the files aside, sync them, and rename the whole directory into place."""
    target = directory / version
    directory.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".draft-", dir=directory))
    try:
        for name, blob in blobs.items():
            write_synced(aside / name, blob)
        aside.chmod(0o755)
        sync_directory(aside)
        if target.exists():  # the same content was written before, or damage of it: replace
            shutil.rmtree(target)
        os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(directory)
    return target


# --- read -----------------------------------------------------------------------------------


def load_package(path: Path, expected: Expected) -> Model:
    """Load a package after checking all but its golden scores. Raises PackageError.

    Every byte is hashed before it is used, and used from the memory that was hashed. No tensor is
    allocated before the card's spec equals the expected inputs.
    """
    card, spec = _read_card(path, expected)
    weights = unpack_tensors(_read_checked(path / WEIGHTS, card), str(path / WEIGHTS))
    network = _build(path / WEIGHTS, spec, weights)
    warmup = unpack_requests(_read_checked(path / WARMUP, card), spec.inputs, str(path / WARMUP))
    return Model(card, path.name, network, [request for request, _ in warmup])


def verify_package(path: Path, expected: Expected) -> Model:
    """`load_package`, then score the golden requests. Raises PackageError.

    Meant for a process of its own (`predictor.verify`): a package that kills its reader kills
    nobody else.
    """
    model = load_package(path, expected)
    place, inputs = path / GOLDEN, model.network.spec.inputs
    cases = unpack_requests(_read_checked(place, model.card), inputs, str(place))
    for index, (request, wanted) in enumerate(cases):
        scores = model.logits(request)
        if wanted is None or wanted.shape != scores.shape:
            got = "none" if wanted is None else str(wanted.shape)
            raise PackageError(f"{place}[{index}]", required=f"{scores.shape} scores", got=got)
        worst = float(np.abs(scores - wanted).max(initial=0))
        if not worst <= model.card.tolerance:
            raise PackageError(
                f"{place}[{index}]",
                required=f"logits within {model.card.tolerance} of those the trainer saw",
                got=f"{worst:.3g} off",
                do="train and serve with the same version of encore and torch",
            )
    return model


def _read_card(path: Path, expected: Expected) -> tuple[ModelCard, NetworkSpec]:
    if not VERSION.fullmatch(path.name):
        raise PackageError(str(path), required="a directory named by a version", got=path.name)
    try:
        present = sorted(entry.name for entry in os.scandir(path))
    except OSError as error:
        raise _unreadable(path, error) from None
    if present != sorted((CARD, *FILES)):
        required, got = ", ".join(sorted((CARD, *FILES))), ", ".join(present)
        raise PackageError(str(path), required=f"exactly {required}", got=got, do=_RESTORE)
    text = _read(path / CARD)
    if (version := version_of(text)) != path.name:
        required = "the content that the version names"
        raise PackageError(str(path / CARD), required=required, got=version, do=_RESTORE)
    return load_card(text, expected, str(path / CARD))


def _read(path: Path) -> bytes:
    """A regular file's bytes; links are refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if (size := os.fstat(descriptor).st_size) > MAX_FILE_BYTES:
                required = f"at most {MAX_FILE_BYTES} bytes"
                raise PackageError(str(path), required=required, got=str(size))
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> PackageError:
    got = error.strerror or type(error).__name__
    return PackageError(str(path), required="a readable package", got=got, do=_RESTORE)


def _read_checked(path: Path, card: ModelCard) -> bytes:
    """A file's bytes, which hash to what the card says."""
    blob = _read(path)
    digest = hashlib.sha256(blob).hexdigest()
    if digest != card.files[path.name]:
        wanted = card.files[path.name]
        raise PackageError(str(path), required=f"sha256 {wanted}", got=digest, do=_RESTORE)
    return blob


def _build(path: Path, spec: NetworkSpec, weights: dict[str, torch.Tensor]) -> Network:
    """The network of `spec` around `weights`, without initialising or copying any."""
    with torch.device("meta"):
        network = build_network(spec)
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in network.state_dict().items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in weights.items()}
    if wanted != found:
        wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise PackageError(
            f"{path}.{wrong[0]}",
            required=str(wanted.get(wrong[0], "no such tensor")),
            got=str(found.get(wrong[0], "no such tensor")),
        )
    _check_finite(weights, str(path))
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False)
    return network


def _check_finite(weights: Mapping[str, torch.Tensor], where: str) -> None:
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise PackageError(f"{where}.{name}", required="finite weights", got="NaN or infinity")
