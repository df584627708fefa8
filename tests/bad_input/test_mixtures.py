"""`data.datasets`: lists that are wrong, and datasets that do not go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest

from tests.bad_input.table import SMALL, refused
from tests.conftest import MakeLibero
from tests.data.lerobot_folders import FIXTURES, IMAGE

KEYS = "{agentview: observation.images.image, eye_in_hand: observation.images.wrist_image}"
LEROBOT = f"path: {FIXTURES / IMAGE}"


@dataclass(frozen=True)
class Mix:
    """One bad mixture: A and B in the value stand for two good datasets."""

    datasets: str
    words: tuple[str, ...]
    more: tuple[str, ...] = ()
    spoil: Callable[[Path], object] = lambda root: None


def mix(datasets: str, *words: str, more: Sequence[str] = (), spoil: Callable[[Path], object] | None = None) -> Mix:
    return Mix(datasets, words, tuple(more), spoil or (lambda root: None))


def one_camera(root: Path) -> None:
    for path in root.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            for demo in file["data"].values():
                del demo["obs/eye_in_hand_rgb"]


ROWS = {
    "a weight of zero": mix("[{path: A, weight: 0}, {path: B}]", "data.datasets.0.weight", "greater than 0"),
    "a negative weight": mix("[{path: A}, {path: B, weight: -2}]", "data.datasets.1.weight", "greater than 0"),
    "a weight that is not finite": mix("[{path: A}, {path: B, weight: .inf}]", "data.datasets.1.weight", "finite"),
    "a weight in words": mix("[{path: A, weight: much}]", "data.datasets.0.weight", "much"),
    "a weight too small for a sample": mix("[{path: A}, {path: B, weight: 1e-7}]", "'b'", "larger weight"),
    "a name twice": mix("[{path: A, name: x}, {path: B, name: x}]", "datasets.1 and datasets.0", "'x'", "name: …"),
    "a path twice": mix("[{path: A}, {path: A}]", "datasets.1 and datasets.0", "'a'", "name: …"),
    "an empty list": mix("[]", "data.datasets", "at least 1"),
    "no list": mix("{path: A}", "data.datasets", "list"),
    "a path without its key": mix("[A, B]", "data.datasets.0", "a section with keys of its own"),
    "no path": mix("[{path: A}, {weight: 2}]", "data.datasets.1.path", "required"),
    "an unknown key": mix("[{path: A, wieght: 2}]", "data.datasets.0.wieght", "Did you mean 'weight'"),
    "a path beside it": mix("[{path: A}]", "datasets and path are both set", more=["data.path=B"]),
    "an orientation beside it": mix("[{path: A}]", "datasets and orientation", more=["data.orientation=mirrored"]),
    "an unknown balance": mix("[{path: A}]", "data.balance", "tasks", "weights", more=["data.balance=tasks"]),
    "weights that are not used": mix(
        "[{path: A, weight: 2}, {path: B}]", "datasets.0.weight is 2", "balance", more=["data.balance=task"]
    ),
    "a dataset that is not there": mix("[{path: A}, {path: gone}]", "data.datasets.1 ('gone')", "no dataset at gone"),
    "a damaged dataset": mix(
        "[{path: A}, {path: B}]",
        "data.datasets.1 ('b')",
        "task_0_demo.hdf5",
        spoil=lambda root: (root / "task_0_demo.hdf5").write_text("no more"),
    ),
    "a camera that one lacks": mix(
        "[{path: A}, {path: B}]", "'b' lacks ['eye_in_hand']", "data.cameras=[agentview]", spoil=one_camera
    ),
    "a camera that all lack": mix("[{path: A}, {path: B}]", "'a' lacks ['top']", more=["data.cameras=[top]"]),
    "a camera called after nothing": mix("[{path: A, cameras: {front: top}}]", "'a'", "['top']"),
    "an instruction too many": mix("[{path: A, instruction: lift}]", "data.datasets.0 ('a')", "'lift'"),
    "a mapping for HDF5 files": mix("[{path: A, features: {action: a}}]", "data.datasets.0 ('a')", "data.features"),
    "poses beside deltas": mix(
        f"[{{path: A}}, {{{LEROBOT}, features: {{cameras: {KEYS}, action_spec: {{delta: false, control_hz: 20}}}}}}]",
        "delta of position is True in 'a' and False in",
        "features.action_spec",
    ),
    "another control rate": mix(
        f"[{{path: A}}, {{{LEROBOT}, features: {{cameras: {KEYS}, action_spec: {{control_hz: 5}}}}}}]",
        "control_hz is 20.0 in 'a' and 5.0 in",
    ),
    "another proprio": mix(
        f"[{{path: A}}, {{{LEROBOT}, features: {{cameras: {KEYS}, proprio: action}}}}]", "proprio", "8 in 'a'", "7 in"
    ),
    "a dataset of the hub without a network": mix(
        "[{path: A}, {path: hf:nobody/nothing}]", "data.datasets.1", "hf:nobody/nothing", "cannot be reached"
    ),
    "two caches": mix(
        "[{path: A}]", "frame_cache and feature_cache", more=["data.frame_cache=f", "data.feature_cache=g"]
    ),
}


@pytest.mark.parametrize("name", ROWS, ids=lambda name: name.replace(" ", "-"))
def test_a_bad_mixture_is_refused(
    name: str, place: Path, make_libero: MakeLibero, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    bad = ROWS[name]
    paths = {"A": make_libero({"open it": [9, 9]}, folder="a"), "B": make_libero({"close it": [9, 9]}, folder="b")}
    bad.spoil(paths["B"])

    def filled(text: str) -> str:
        for letter, path in paths.items():
            text = text.replace(f"path: {letter}", f"path: {path}").replace(f"path={letter}", f"path={path}")
        return text

    arguments = ["train", "--cpu", *SMALL, f"data.datasets={filled(bad.datasets)}", *map(filled, bad.more)]
    refused(place, arguments, *bad.words)
