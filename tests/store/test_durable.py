from pathlib import Path

import pytest

from store.durable import replacing, write_synced


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path, aside = tmp_path / "position", tmp_path / "position.new"
    for text in (b"a longer text", b"short"):
        with replacing(path, aside) as file:
            file.write(text)
            assert path.exists() == (text == b"short"), "the old file stays until the end"
        assert path.read_bytes() == text
        assert not aside.exists()


def test_what_breaks_off_replaces_nothing(tmp_path: Path) -> None:
    path, aside = tmp_path / "position", tmp_path / "position.new"
    write_synced(path, b"old")
    with pytest.raises(RuntimeError, match="in the middle"), replacing(path, aside) as file:
        file.write(b"ne")
        raise RuntimeError("in the middle")
    assert path.read_bytes() == b"old"


def test_what_was_left_aside_is_written_over(tmp_path: Path) -> None:
    path, aside = tmp_path / "position", tmp_path / "position.new"
    write_synced(aside, b"left behind by a crash, and longer")
    with replacing(path, aside) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
