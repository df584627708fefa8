"""Array files in a cache: read if they are whole, and refused in one way if they are not."""

from pathlib import Path

import numpy as np
import pytest

from atlas.data.caches.arrays import map_array


def test_an_array_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert map_array(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(2, 3)", b"(2, 3 "),  # a bracket that is not closed
        (b"(2, 3)", b"(((((("),
        (b"(2, 3)", b"2**99 "),
        (b"'<i8'", b"'|O' "),
        (b"{'descr'", b"{'descR'"),
        (b"\x93NUMPY", b"\x93NUMPi"),
        (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00"),
    ],
)
def test_a_damaged_header_is_a_value_error(tmp_path: Path, old: bytes, new: bytes) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    content = (tmp_path / "a.npy").read_bytes()
    assert old in content
    (tmp_path / "a.npy").write_bytes(content.replace(old, new))
    with pytest.raises(ValueError, match=r"\w"):
        map_array(tmp_path / "a.npy")


def test_a_file_that_is_missing_or_cut_off_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        map_array(tmp_path / "none.npy")
    np.save(tmp_path / "a.npy", np.arange(6))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"\w"):
        map_array(tmp_path / "a.npy")
