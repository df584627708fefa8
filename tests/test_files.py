"""Files are complete or absent, and a disk that refuses them is reported."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from atlas.system.files import atomic_path, sync, write_text


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_text(file, "old")

    with atomic_path(file) as partial:
        partial.write_text("half of the n")
        assert file.read_text() == "old"
        partial.write_text("new")

    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_what_raises_meanwhile_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_text(file, "old")

    with pytest.raises(OSError, match="full"), atomic_path(file) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "full")

    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_disk_that_does_not_take_the_bytes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    file = tmp_path / "weights"
    file.write_bytes(b"1")
    monkeypatch.setattr(os, "fsync", refuse)

    for path in (file, tmp_path):
        with pytest.raises(OSError, match="the disk is broken"):
            sync(path)
