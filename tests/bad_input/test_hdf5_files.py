"""HDF5 demonstrations that are cut off, damaged, or in a layout other than LIBERO's."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.bad_input.table import Row, cut, each, flip, refused

FILE = "task_0_demo.hdf5"  # of three episodes, with 12, 9 and 11 frames
Change = Callable[[h5py.File], Any]


def inside(name: str, change: Change, *words: str) -> Row:
    """A change of the file's contents by HDF5's own means."""

    def spoil(folder: Path) -> None:
        with h5py.File(folder / FILE, "a") as file:
            change(file)

    return Row(name, spoil, (FILE, *words))


def outside(name: str, change: Callable[[Path], Any], *words: str) -> Row:
    """A change of the file's bytes."""
    return Row(name, lambda folder: change(folder / FILE), (FILE, *words))


def put(key: str, make: Callable[[np.ndarray], Any]) -> Change:
    """Replace a dataset's values with what `make` returns for them."""

    def change(file: h5py.File) -> None:
        values = make(file[key][:])
        del file[key]
        file[key] = values

    return change


def set_value(key: str, place: tuple[int, int], value: float) -> Change:
    def change(file: h5py.File) -> None:
        file[key][place] = value

    return change


def set_attribute(name: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        file["data"].attrs[name] = value

    return change


def remove(key: str) -> Change:
    return lambda file: file.pop(key)


def make_dataset(key: str) -> Change:
    """A dataset where a group should be."""

    def change(file: h5py.File) -> None:
        attributes = dict(file[key].attrs)
        del file[key]
        file[key] = np.zeros(3)
        file[key].attrs.update(attributes)

    return change


def make_group(key: str) -> Change:
    def change(file: h5py.File) -> None:
        del file[key]
        file.create_group(key)

    return change


def link(key: str, target: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file[key]
        file[key] = target

    return change


def like_robomimic(file: h5py.File) -> None:
    """The same numbers under the keys of another project's layout."""
    for demo in file["data"].values():
        for old, new in (
            ("ee_pos", "robot0_eef_pos"),
            ("ee_ori", "robot0_eef_quat"),
            ("agentview_rgb", "agentview_image"),
        ):
            demo["obs"].move(old, new)


def without_actions(file: h5py.File) -> None:
    for demo in file["data"].values():
        demo.move("actions", "moves")


def rename_demos(file: h5py.File) -> None:
    without_actions(file)
    for name in list(file["data"]):
        file["data"].move(name, name.replace("demo", "episode"))


def compress_whole_file(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


DEMO, OBS = "data/demo_1", "data/demo_1/obs"
IMAGES = f"{OBS}/agentview_rgb"

ROWS = [
    outside("no bytes", lambda path: path.write_bytes(b""), "cannot be read as HDF5"),
    outside("text", lambda path: path.write_text("demo 1: open the drawer\n" * 100), "cannot be read as HDF5"),
    outside("a signature alone", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "cannot be read as HDF5"),
    outside("cut off in the header", lambda path: cut(path, 0.002), "truncated"),
    outside("cut off in the middle", lambda path: cut(path, 0.5), "truncated"),
    outside("cut off before the end", lambda path: cut(path, 0.999), "truncated"),
    outside("compressed as a whole", compress_whole_file, "cannot be read as HDF5"),
    outside("a flipped signature", lambda path: flip(path, 1), "cannot be read as HDF5"),
    outside("a flipped version", lambda path: flip(path, 8), "cannot be read as HDF5"),
    outside("a flipped root", lambda path: flip(path, *range(64, 72))),
    inside("no data", remove("data"), "'data'"),
    inside("no actions", remove(f"{DEMO}/actions"), "data/demo_1", "'actions'"),
    inside("no observations", remove(OBS), "data/demo_1", "'obs'"),
    inside("no orientation", remove(f"{OBS}/ee_ori"), "data/demo_1", "'obs/ee_ori'"),
    inside(
        "no cameras",
        lambda f: [
            f[f"data/demo_0/obs/{c}_rgb"] and f["data/demo_0/obs"].pop(f"{c}_rgb") for c in ("agentview", "eye_in_hand")
        ],
        "data/demo_0/obs",
        "_rgb",
    ),
    inside("one camera fewer in one episode", remove(IMAGES), "data/demo_1/obs", "['eye_in_hand']"),
    inside("groups that are no demos", rename_demos, "no groups demo_0", "'episode_0'"),
    inside("robomimic's names with LIBERO's numbers", like_robomimic, "data/demo_0/obs/robot0_eef_quat", "(12, 3)"),
    inside("no instruction", lambda file: file["data"].attrs.pop("problem_info"), "'problem_info'"),
    inside("an instruction that is not JSON", set_attribute("problem_info", "open the drawer"), "'problem_info'"),
    inside("an instruction in a list", set_attribute("problem_info", "[1, 2]"), "'problem_info'"),
    inside(
        "an instruction that is a number",
        set_attribute("problem_info", json.dumps({"language_instruction": 7})),
        "'language_instruction'",
        "7",
    ),
    inside("a number for the instruction", set_attribute("problem_info", 5.0), "'problem_info'"),
    inside("a world that is not JSON", set_attribute("env_args", "{env_name"), "'env_args'"),
    inside("a world that is a list", set_attribute("env_args", "[]"), "'env_args'"),
    inside("six actions", put(f"{DEMO}/actions", lambda a: a[:, :6]), "data/demo_1/actions", "(9, 6)", "[frames, 7]"),
    inside("flat actions", put(f"{DEMO}/actions", np.ravel), "data/demo_1/actions", "(63,)"),
    inside(
        "actions in words", put(f"{DEMO}/actions", lambda a: a.astype("S8")), "data/demo_1/actions", "expected numbers"
    ),
    inside("complex actions", put(f"{DEMO}/actions", lambda a: a + 1j), "data/demo_1/actions", "complex128"),
    inside("no frames", put(f"{DEMO}/actions", lambda a: a[:0]), "data/demo_1/actions", "no frames"),
    inside(
        "an action that is not a number",
        set_value(f"{DEMO}/actions", (4, 2), np.nan),
        "data/demo_1/actions",
        "not finite",
        "frame 4",
    ),
    inside("an infinite action", set_value(f"{DEMO}/actions", (8, 6), np.inf), "data/demo_1/actions", "frame 8"),
    inside("an action beyond float32", set_value(f"{DEMO}/actions", (0, 0), 1e300), "data/demo_1/actions", "frame 0"),
    inside(
        "a position that is not a number",
        set_value(f"{OBS}/ee_pos", (3, 1), np.nan),
        "data/demo_1/obs/ee_pos",
        "frame 3",
    ),
    inside(
        "positions of four numbers",
        put(f"{OBS}/ee_pos", lambda p: np.c_[p, p[:, :1]]),
        "data/demo_1/obs/ee_pos",
        "(9, 4)",
    ),
    inside(
        "fewer positions than actions", put(f"{OBS}/ee_pos", lambda p: p[:5]), "data/demo_1/obs/ee_pos", "5 frames", "9"
    ),
    inside("fewer images than actions", put(IMAGES, lambda i: i[:-1]), IMAGES, "8 frames", "9"),
    inside(
        "images in floats", put(IMAGES, lambda i: (i / 255).astype(np.float32)), IMAGES, "float32", "expected uint8"
    ),
    inside("grey images", put(IMAGES, lambda i: i[..., 0]), IMAGES, "(9, 32, 32)"),
    inside("channels first", put(IMAGES, lambda i: np.moveaxis(i, 3, 1)), IMAGES, "(9, 3, 32, 32)"),
    inside("images without pixels", put(IMAGES, lambda i: i[:, :0]), IMAGES, "(9, 0, 32, 3)"),
    inside("data that is a dataset", make_dataset("data"), "data is a dataset"),
    inside("a demo that is a dataset", make_dataset(DEMO), "data/demo_1 is a dataset"),
    inside("observations that are a dataset", make_dataset(OBS), "data/demo_1/obs is a dataset"),
    inside("actions that are a group", make_group(f"{DEMO}/actions"), "data/demo_1/actions is a group"),
    inside("a link to nowhere", link(DEMO, h5py.SoftLink("/data/demo_99")), "demo_1"),
    inside("a link to a file that is not there", link(IMAGES, h5py.ExternalLink("gone.hdf5", "/images")), IMAGES),
]


@each(ROWS)
def test_a_damaged_file_is_refused_by_training_and_by_inspection(
    bad: Row, place: Path, good_data: Path, copied: Callable[[Path], Path], train_on: Callable[..., Sequence[str]]
) -> None:
    data = copied(good_data)
    bad.spoil(data)

    refused(place, train_on(data), *bad.words)
    refused(place, ["data", "inspect", str(data)], *bad.words)


def test_a_file_that_is_cut_off_anywhere_is_refused(
    place: Path, good_data: Path, copied: Callable[[Path], Path], train_on: Callable[..., Sequence[str]]
) -> None:
    data = copied(good_data)
    whole = (data / FILE).read_bytes()
    for length in random.Random(5).sample(range(len(whole)), 16):
        (data / FILE).write_bytes(whole[:length])
        refused(place, train_on(data), FILE, "cannot be read as HDF5")
