"""HDF5 files that others wrote: links, other files' bytes, sizes that cannot be true, locks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest

from atlas.data.formats import open_dataset
from atlas.errors import InputError
from tests.conftest import MakeLibero

IMAGES = "data/demo_1/obs/agentview_rgb"


@pytest.fixture
def root(make_libero: MakeLibero) -> Path:
    """A file of two demos, of 5 and 6 frames."""
    return make_libero({"open it": [5, 6]}, size=16)


def moved_to(file: h5py.File, key: str, other: Path, name: str) -> None:
    """Move a dataset to another file, after something else, so that it lies elsewhere in it than it did."""
    with h5py.File(other, "w") as target:
        target["first"] = np.arange(5000)
        file.copy(key, target, name)
    del file[key]


def replaced(file: h5py.File, key: str, **how: Any) -> None:
    """Store a dataset again in another way."""
    values = file[key][:]
    del file[key]
    file.create_dataset(key, data=values, **how)


# Where the values of a dataset lie


def behind_an_external_link(file: h5py.File, folder: Path) -> None:
    moved_to(file, IMAGES, folder / "images.bin", "frames")
    file[IMAGES] = h5py.ExternalLink("images.bin", "/frames")


def behind_links_to_links(file: h5py.File, folder: Path) -> None:
    moved_to(file, IMAGES, folder / "images.bin", "frames")
    with h5py.File(folder / "images.bin", "a") as other:
        other["same"] = h5py.SoftLink("frames")
    file["data/demo_1/obs/elsewhere"] = h5py.ExternalLink("images.bin", "same")
    file[IMAGES] = h5py.SoftLink("elsewhere")


def in_another_file_altogether(file: h5py.File, folder: Path) -> None:
    moved_to(file, "data/demo_1", folder / "demo.bin", "taken")
    file["data/demo_1"] = h5py.ExternalLink("demo.bin", "taken")


def in_external_storage(file: h5py.File, folder: Path) -> None:
    values = file[IMAGES][:]
    (folder / "raw").mkdir()
    (folder / "raw/images.bin").write_bytes(b"before" + values.tobytes())
    del file[IMAGES]
    file.create_dataset(IMAGES, values.shape, np.uint8, external=[("raw/images.bin", 6, values.size)])


def put_together(file: h5py.File, folder: Path) -> None:
    shape = file[IMAGES].shape
    moved_to(file, IMAGES, folder / "images.bin", "frames")
    layout = h5py.VirtualLayout(shape, np.uint8)
    for first, end in ((0, 4), (4, 6)):
        layout[first:end] = h5py.VirtualSource("images.bin", "frames", shape)[first:end]
    file.create_virtual_dataset(IMAGES, layout)


WAYS: dict[str, Callable[[h5py.File, Path], None]] = {
    "external link": behind_an_external_link,
    "links to links": behind_links_to_links,
    "a demo in another file": in_another_file_altogether,
    "external storage": in_external_storage,
    "a virtual dataset": put_together,
    "chunks": lambda file, _: replaced(file, IMAGES, chunks=(2, 16, 16, 3)),
    "filters": lambda file, _: replaced(file, IMAGES, compression="gzip", shuffle=True, fletcher32=True),
    "scale and offset": lambda file, _: replaced(file, IMAGES, scaleoffset=0),
    "a soft link": lambda file, _: file.move(IMAGES, "pixels") or file.__setitem__(IMAGES, h5py.SoftLink("/pixels")),
}


@pytest.mark.parametrize("way", WAYS)
def test_images_are_the_same_however_they_are_stored(
    way: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_dataset(root).episode(1).images("agentview", [5, 0, 4])
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        WAYS[way](file, root)
    monkeypatch.chdir(tmp_path)  # what the file names is beside it, and not where Atlas is started

    np.testing.assert_array_equal(open_dataset(root).episode(1).images("agentview", [5, 0, 4]), expected)


def test_a_block_of_the_users_own_before_the_data_is_no_part_of_it(root: Path) -> None:
    expected = open_dataset(root).episode(1).images("agentview", [5])
    plain, shifted = root / "task_0_demo.hdf5", root / "shifted.hdf5"
    with h5py.File(plain) as source, h5py.File(shifted, "w", userblock_size=1024) as target:
        source.copy("data", target)
    plain.unlink()

    np.testing.assert_array_equal(open_dataset(root).episode(1).images("agentview", [5]), expected)


def test_compact_and_narrow_numbers_are_read_through_hdf5(root: Path) -> None:
    """Contiguous bytes that are not the values: a number of 4 bits in each."""
    path = root / "task_0_demo.hdf5"
    with h5py.File(path, "a") as file:
        values = file[IMAGES][:] % 16
        del file[IMAGES]
        kind = h5py.h5t.STD_U8LE.copy()
        kind.set_precision(4)
        kind.set_offset(2)
        space = h5py.h5s.create_simple(values.shape)
        h5py.Dataset(h5py.h5d.create(file.id, b"narrow", kind, space))[:] = values
        file.move("narrow", IMAGES)

    np.testing.assert_array_equal(
        open_dataset(root, orientation="upright").episode(1).images("agentview", range(6)), values
    )


def outside(name: str) -> Callable[[h5py.File, Path], object]:
    return lambda file, _: file.__setitem__(IMAGES, h5py.ExternalLink(name, "/frames"))


def etc_passwd_as_pixels(file: h5py.File, folder: Path) -> None:
    file.create_dataset(IMAGES, (6, 1, 1, 3), np.uint8, external=[("/etc/passwd", 0, 18)])


def etc_passwd_behind_a_virtual_dataset(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "images.bin", "w") as other:
        other.create_dataset("frames", (6, 1, 1, 3), np.uint8, external=[("/etc/passwd", 0, 18)])
    layout = h5py.VirtualLayout((6, 1, 1, 3), np.uint8)
    layout[:] = h5py.VirtualSource("images.bin", "frames", (6, 1, 1, 3))
    file.create_virtual_dataset(IMAGES, layout)


def put_together_of(file: str, frames: int) -> Callable[[h5py.File, Path], None]:
    def change(target: h5py.File, folder: Path) -> None:
        with h5py.File(folder / "images.bin", "w") as other:
            other["frames"] = np.zeros((6, 16, 16, 3), np.uint8)
        layout = h5py.VirtualLayout((6, 16, 16, 3), np.uint8)
        layout[:frames] = h5py.VirtualSource(file, "frames", (6, 16, 16, 3))[:frames]
        target.create_virtual_dataset(IMAGES, layout)

    return change


def too_little_beside_it(file: h5py.File, folder: Path) -> None:
    (folder / "raw.bin").write_bytes(bytes(100))
    file.create_dataset(IMAGES, (6, 16, 16, 3), np.uint8, external=[("raw.bin", 0, 6 * 16 * 16 * 3)])


REFUSED: dict[str, tuple[Callable[[h5py.File, Path], object], str]] = {
    "a link to a file of an absolute name": (outside("/etc/passwd"), "lies in another file.*absolute"),
    "a link out of the folder": (outside("../other.hdf5"), r"leads out of the folder by '\.\.'"),
    "a link to a file that is not there": (outside("gone.hdf5"), "gone.hdf5, which does not exist"),
    "a link to a device": (outside("pipe"), "pipe, which does not exist"),
    "bytes of an absolute name": (etc_passwd_as_pixels, "'/etc/passwd' cannot name a file"),
    "such bytes in a virtual dataset": (etc_passwd_behind_a_virtual_dataset, "'/etc/passwd' cannot name a file"),
    "fewer bytes than values": (too_little_beside_it, "should have 4,608 bytes in other files, but they have 100"),
    "a virtual dataset of a file that is not there": (put_together_of("gone.bin", 6), "gone.bin, which does not exist"),
    "a virtual dataset with a gap": (put_together_of("images.bin", 4), "assembled from 3,072 values.* have 4,608"),
    "a link to itself": (lambda f, _: f.__setitem__(IMAGES, h5py.SoftLink(f"/{IMAGES}")), "leads in a circle"),
    "a link to nowhere": (lambda f, _: f.__setitem__(IMAGES, h5py.SoftLink("/nowhere")), "link to something that does"),
    "a type": (lambda f, _: f.__setitem__(IMAGES, np.dtype("f4")), "neither a group nor a dataset"),
    "images that were never written": (
        lambda f, _: f.create_dataset(IMAGES, (6, 16, 16, 3), np.uint8),
        "nothing was ever written",
    ),
    "a chunk of 4 GiB": (
        lambda f, _: f.create_dataset(
            IMAGES, (6, 2048, 2048, 3), np.uint8, chunks=(340, 2048, 2048, 3), maxshape=(None, 2048, 2048, 3)
        ),
        "chunks of 4,278,190,080 bytes",
    ),
    "a chunk for each of 2^42 values": (
        lambda f, _: f.create_dataset(IMAGES, (2**40, 1, 1, 3), np.uint8, chunks=(1, 1, 1, 1)),
        "stored in 3,298,534,883,328 chunks",
    ),
    "images of 2^42 pixels": (
        lambda f, _: f.create_dataset(IMAGES, (6, 2**21, 2**21, 3), np.uint8, chunks=(1, 2**14, 2**14, 3)),
        "13,194,139,533,312 bytes.* cannot be true",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_lies_elsewhere_or_cannot_be_is_refused_by_name(case: str, root: Path) -> None:
    change, words = REFUSED[case]
    os.mkfifo(root / "pipe")  # to open it would wait for ever
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        del file[IMAGES]
        change(file, root)

    with pytest.raises(InputError, match=rf"task_0_demo.hdf5: data/demo_1/obs/agentview_rgb.*{words}"):
        open_dataset(root)


def test_more_numbers_than_the_file_can_hold_are_refused(root: Path) -> None:
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        del file["data/demo_1/actions"]
        actions = file.create_dataset("data/demo_1/actions", (2**39, 7), np.float64, chunks=(2**22, 7))
        actions[0] = 1.0

    with pytest.raises(InputError, match=r"demo_1/actions claims to hold 30,786,325,577,728 bytes"):
        open_dataset(root)


def test_a_filter_that_is_not_installed_is_no_damage(root: Path) -> None:
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        shape = file[IMAGES].shape
        del file[IMAGES]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk(shape)
        made.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())  # blosc's number
        h5py.h5d.create(
            file["data/demo_1/obs"].id, b"agentview_rgb", h5py.h5t.STD_U8LE, h5py.h5s.create_simple(shape), made
        )

    with pytest.raises(InputError, match=r"\(32001\), which is not installed"):
        open_dataset(root, skip_damaged=True)


def test_a_heap_of_texts_without_an_end_is_damage_and_no_end_of_reading(root: Path) -> None:
    """Zeros in it, as a power cut leaves them: HDF5 itself would read for ever."""
    path = root / "task_0_demo.hdf5"
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 64] = bytes(48)
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"task_0_demo.hdf5: data, the attribute 'problem_info' is damaged"):
        open_dataset(root)


# Files that are in use


def test_a_locked_file_is_in_use_and_not_damaged(root: Path) -> None:
    with (root / "task_0_demo.hdf5").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        with pytest.raises(InputError, match=r"is in use: .*process \d+\) has locked it.*HDF5_USE_FILE_LOCKING"):
            open_dataset(root, skip_damaged=True)


def test_a_file_that_a_program_did_not_close_is_not_damaged(root: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "writing.hdf5", "w", libver="latest") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
        file.swmr_mode = True
        shutil.copy(tmp_path / "writing.hdf5", root / "ended.hdf5")

    with pytest.raises(InputError, match=r"ended\.hdf5 is marked as being written to.*h5clear -s"):
        open_dataset(root, skip_damaged=True)


def test_a_file_system_without_locks_is_named(root: Path) -> None:
    """As network file systems answer, of which none is here."""
    said = f"[Errno {errno.ENOLCK}] Unable to open file (unable to lock file, errno = {errno.ENOLCK})"
    with (
        mock.patch.object(h5py, "File", side_effect=OSError(errno.ENOLCK, said)),
        pytest.raises(InputError, match=r"cannot be locked by its file system.*HDF5_USE_FILE_LOCKING=FALSE"),
    ):
        open_dataset(root, skip_damaged=True)
