"""Packages: a written one loads and scores alike; a damaged one is refused, whatever the damage."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from predictor.card import CARD, CURRENT, FILES, GOLDEN, WARMUP, WEIGHTS, Expected, version_of
from predictor.networks import SCORE_TOLERANCE
from predictor.package import (
    current_version,
    load_package,
    publish_package,
    verify_package,
    write_package,
)
from predictor.requests import pack_tensors
from predictor.spec import KINDS, Kind, input_spec
from predictor.verify import verify_in_process
from schemas.errors import PackageError
from tests.patience import WAIT_S
from tests.predictor.support import SERVICE, draft, publish, random_inputs


def expected(kind: Kind, **changes: Any) -> Expected:
    wanted = Expected(kind, SERVICE.name, SERVICE.fingerprint, input_spec(SERVICE))
    return dataclasses.replace(wanted, **changes)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("packages"), draft("fine"))


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    target = tmp_path / "fine" / good.name
    shutil.copytree(good, target)
    return target


def repack(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The package with another card, hashed and named as if it had been written so."""
    card = json.loads((path / CARD).read_bytes())
    for name in FILES:
        if (path / name).exists():
            card["files"][name] = _sha(path / name)
    change(card)
    text = json.dumps(card).encode()
    (path / CARD).write_bytes(text)
    return path.rename(path.parent / version_of(text))


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: Kind, tmp_path: Path) -> None:
    source = draft(kind)
    path = write_package(tmp_path, source)
    model = verify_package(path, expected(kind))
    request = random_inputs(33, seed=5)
    with torch.inference_mode():
        wanted = source.network(request).numpy()
    np.testing.assert_allclose(model.logits(request), wanted, atol=SCORE_TOLERANCE, rtol=0)
    assert model.version == int(path.name, 16)
    assert model.card.metrics == {"auc": 0.5}
    assert not any(each.requires_grad for each in model.network.parameters())
    assert write_package(tmp_path, source) == path  # the same content is the same version


def test_publishing_is_a_pointer(tmp_path: Path) -> None:
    assert current_version(tmp_path, "fine") is None
    for seed in (1, 2):
        assert current_version(tmp_path, "fine") != publish(tmp_path, "fine", seed).name
    names = {entry.name for entry in (tmp_path / "fine").iterdir()}
    assert names == {CURRENT, *(n for n in names if len(n) == 16)}
    assert len(names) == 3


@pytest.mark.parametrize("text", ["../../etc", "/etc/passwd", "", "abc", "0" * 17, "G" * 16, "\0"])
def test_pointer_to_no_version_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "fine").mkdir()
    (tmp_path / "fine" / CURRENT).write_text(text)
    with pytest.raises(PackageError, match="16 hex digits"):
        current_version(tmp_path, "fine")


@pytest.mark.parametrize("name", [CARD, *FILES])
def test_any_flipped_bit_is_refused(name: str, copy: Path) -> None:
    data = (copy / name).read_bytes()
    rng = np.random.default_rng(0)
    places = {0, len(data) - 1, *rng.integers(0, len(data), 5).tolist()}
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(0, 8))
        (copy / name).write_bytes(damaged)
        with pytest.raises(PackageError):
            verify_package(copy, expected("fine"))


@pytest.mark.parametrize("name", [CARD, *FILES])
def test_missing_truncated_and_linked_files_are_refused(name: str, copy: Path) -> None:
    data = (copy / name).read_bytes()
    (copy / name).unlink()
    with pytest.raises(PackageError, match="exactly"):
        verify_package(copy, expected("fine"))
    (copy / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(PackageError):
        verify_package(copy, expected("fine"))
    (copy / name).unlink()
    (copy.parent / "elsewhere").write_bytes(data)
    os.symlink(copy.parent / "elsewhere", copy / name)
    with pytest.raises(PackageError, match="readable"):
        verify_package(copy, expected("fine"))


def test_extra_files_and_other_names_are_refused(copy: Path) -> None:
    (copy / "weights.pkl").write_bytes(b"")
    with pytest.raises(PackageError, match="exactly"):
        load_package(copy, expected("fine"))
    (copy / "weights.pkl").unlink()
    renamed = copy.rename(copy.parent / "0123456789abcdef")
    with pytest.raises(PackageError, match="content that the version names"):
        load_package(renamed, expected("fine"))
    with pytest.raises(PackageError, match="directory named by a version"):
        load_package(renamed.rename(copy.parent / "latest"), expected("fine"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(kind="linear"), "kind"),
        (lambda card: card.update(format=2), "format"),
        (lambda card: card.update(fingerprint="0" * 16), "fingerprint"),
        (lambda card: card.update(service="other"), "service"),
        (lambda card: card.update(extra=1), "extra"),
        (lambda card: card.pop("score"), "score"),
        (lambda card: card["score"].update(share=1.0), "score"),
        (lambda card: card["metrics"].update(auc=float("nan")), "metrics"),
        (lambda card: card.update(tolerance=1e9), "tolerance"),
        (lambda card: card["files"].update({"../weights.safetensors": "0" * 64}), "files"),
        (lambda card: card["files"].pop(GOLDEN), "files"),
        (lambda card: card["spec"].update(hidden=64), "hidden|bottom|safetensors"),
        (lambda card: card["spec"].update(kind="two_tower"), "spec"),
        (lambda card: card["spec"]["inputs"].update(tables=[["a", 1 << 50]]), "spec.inputs"),
    ],
)
def test_cards_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Any]], None], message: str, copy: Path
) -> None:
    with pytest.raises(PackageError, match=message):
        verify_package(repack(copy, change), expected("fine"))


def test_a_package_for_another_plan_is_refused(good: Path) -> None:
    with pytest.raises(PackageError, match="fingerprint"):
        load_package(good, expected("fine", fingerprint="f" * 16))
    with pytest.raises(PackageError, match="kind"):
        load_package(good, expected("two_tower"))


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = safetensors.torch.load((path / WEIGHTS).read_bytes())
        change(tensors)
        (path / WEIGHTS).write_bytes(pack_tensors(tensors))

    return apply


def _requests(
    name: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = safetensors.torch.load((path / name).read_bytes())
        change(tensors)
        (path / name).write_bytes(pack_tensors(tensors))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_weights(lambda t: t["heads"].fill_(float("nan"))), "finite"),
        (_weights(lambda t: t["embeddings.weight"][3].fill_(float("inf"))), "finite"),
        (_weights(lambda t: t["bias"].add_(0.1)), "logits within"),
        (_weights(lambda t: t.update(bias=t["bias"].double())), "bias"),
        (_weights(lambda t: t.update(bias=torch.zeros(4))), "bias"),
        (_weights(lambda t: t.pop("bias")), "bias"),
        (_weights(lambda t: t.update(extra=torch.zeros(1))), "extra"),
        (_requests(GOLDEN, lambda t: t["0.scores"].add_(1)), "logits within"),
        (_requests(GOLDEN, lambda t: t["0.scores"].fill_(float("nan"))), "logits within"),
        (_requests(GOLDEN, lambda t: t.update({"0.scores": torch.zeros(2)})), "scores"),
        (_requests(GOLDEN, lambda t: t.pop("1.scores")), "scores"),
        (_requests(WARMUP, lambda t: t["0.item_slots"].fill_(-1)), "within their tables"),
        (_requests(WARMUP, lambda t: t["0.item_slots"].fill_(1 << 30)), "within their tables"),
        (_requests(WARMUP, lambda t: t["0.length.0"].fill_(51)), "within their tables"),
        (_requests(WARMUP, lambda t: t.pop("0.user_slots")), "requests"),
        (_requests(WARMUP, lambda t: t.pop("0.sequence.1")), "sequence.1"),
        (_requests(WARMUP, lambda t: t.update({"0.user_slots": torch.zeros(3)})), "shape"),
        (_requests(WARMUP, lambda t: t.update({"0.length.0": torch.tensor(1)})), "shape"),
        (_requests(WARMUP, lambda t: t.update({"0.item_slots": torch.tensor(1)})), "shape"),
        (lambda path: (path / WEIGHTS).write_bytes(b"\x80\x04pickle"), "safetensors"),
        (lambda path: (path / WEIGHTS).write_bytes(b""), "safetensors"),
    ],
)
def test_contents_that_do_not_fit_are_refused(
    damage: Callable[[Path], None], message: str, copy: Path
) -> None:
    damage(copy)
    with pytest.raises(PackageError, match=message):
        verify_package(repack(copy, lambda card: None), expected("fine"))


def test_drafts_that_could_not_be_loaded_are_refused(tmp_path: Path) -> None:
    good = draft("fine")
    two_users = dataclasses.replace(random_inputs(2), user_of=torch.zeros(2).long())
    broken: list[dict[str, Any]] = [
        {"requests": []},
        {"score": {"click": 1.0}},
        {"requests": [two_users]},
    ]
    for changes in broken:
        with pytest.raises(PackageError):
            write_package(tmp_path, dataclasses.replace(good, **changes))
    with torch.no_grad():
        good.network.embeddings.weight[0] = float("nan")
    with pytest.raises(PackageError, match="finite"):
        write_package(tmp_path, good)
    assert not any((tmp_path / "fine").glob("*")) or not (tmp_path / "fine").exists()


def test_check_in_another_process(good: Path, copy: Path) -> None:
    asyncio.run(verify_in_process(good, expected("fine"), WAIT_S))
    with (copy / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(PackageError, match="sha256"):
        asyncio.run(verify_in_process(copy, expected("fine"), WAIT_S))
    with pytest.raises(PackageError, match="a check that ends"):
        asyncio.run(verify_in_process(good, expected("fine"), 0.01))


def test_a_check_that_dies_is_a_refusal(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("predictor.verify.sys.executable", "/bin/false")
    with pytest.raises(PackageError, match="needs a check that ends, got exit code 1"):
        asyncio.run(verify_in_process(good, expected("fine"), WAIT_S))


def test_a_file_too_large_to_read_is_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("predictor.package.MAX_FILE_BYTES", 10)
    with pytest.raises(PackageError, match=r"model\.json: needs at most 10 bytes, got \d+"):
        verify_package(good, expected("fine"))


def test_publish_replaces_the_pointer_by_rename(tmp_path: Path) -> None:
    path = write_package(tmp_path, draft("two_tower"))
    publish_package(path)
    before = (path.parent / CURRENT).stat().st_ino
    publish_package(path)
    assert (path.parent / CURRENT).stat().st_ino != before
    assert current_version(tmp_path, "two_tower") == path.name
