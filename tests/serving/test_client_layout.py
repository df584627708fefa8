"""What clients call things, and what they are told when something is missing or has another form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas.errors import InputError
from atlas.serving.protocols.client_layout import LAYOUTS, ObservationReader, read_layout, to_message
from tests.serving.running import libero_message, seen

CAMERAS = ("agentview", "eye_in_hand")
READER = ObservationReader(CAMERAS, 8)


def image(pixel: int = 7, *shape: int) -> np.ndarray:
    return np.full(shape or (4, 6, 3), pixel, np.uint8)


def test_openpis_libero_is_known_by_its_keys() -> None:
    observation = READER.read(libero_message(pixel=3, state=0.25, instruction="open it"))

    assert observation.images["agentview"][0, 0, 0] == 3 and observation.images["eye_in_hand"][0, 0, 0] == 4
    assert observation.proprio.tolist() == [0.25] * 8 and observation.proprio.dtype == np.float32
    assert observation.instruction == "open it"


def test_lerobots_names_are_known() -> None:
    message = {
        "observation.images.agentview": image(1),
        "observation.images.eye_in_hand": image(2),
        "observation.state": list(range(8)),
        "task": "go",
        "more": 3,
    }

    observation = READER.read(message)

    assert [observation.images[camera][0, 0, 0] for camera in CAMERAS] == [1, 2]
    assert observation.proprio.tolist() == list(range(8))


def test_rotations_of_a_state_are_turned_into_the_policys_form(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "cameras: {agentview: front}\nstate: [hand, grip]\ninstruction: task\n"
        "rotations: [{columns: [3, 7], form: quaternion_wxyz}]\n"
    )
    reader = ObservationReader(("agentview",), 10, read_layout(str(tmp_path / "mine.yaml")))
    message = {"front": image(), "hand": [1, 2, 3, -1, 0, 0, 0], "grip": 0.5, "task": "go"}

    assert reader.read(message).proprio.tolist() == [1, 2, 3, 1, 0, 0, 0, 1, 0, 0.5]
    with pytest.raises(InputError, match="state of 8 numbers, and 'hand' has 2, 'grip' has 1"):
        reader.read(message | {"hand": [1, 2]})


def test_droids_state_is_joined() -> None:
    reader = ObservationReader(("exterior_image_1_left", "wrist_image_left"), 8)

    observation = reader.read(
        {
            "observation/exterior_image_1_left": image(1),
            "observation/wrist_image_left": image(2),
            "observation/joint_position": np.arange(7.0),
            "observation/gripper_position": np.array(0.5),
            "prompt": "go",
        }
    )

    assert observation.proprio.tolist() == [0, 1, 2, 3, 4, 5, 6, 0.5]


@pytest.mark.parametrize("nested", [False, True])
def test_groots_axes_are_taken_off(nested: bool) -> None:
    parts: dict[str, dict[str, Any]] = {
        "video": {"agentview": image(1, 1, 1, 4, 4, 3), "eye_in_hand": image(2, 1, 1, 4, 4, 3)},
        "state": {"arm": np.zeros((1, 1, 7), np.float32), "gripper": np.ones((1, 1, 1), np.float32)},
        "language": {"task": [["go"]]},
    }
    flat = {f"{outer}.{inner}": value for outer, part in parts.items() for inner, value in part.items()}

    observation = READER.read(parts if nested else flat)

    assert observation.images["agentview"].shape == (4, 4, 3)
    assert observation.proprio.tolist() == [0] * 7 + [1] and observation.instruction == "go"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (image(9, 3, 4, 6), 9),
        (np.full((4, 6, 3), 9 / 255, np.float32), 9),
        (image(9, 1, 4, 6, 3), 9),
    ],
    ids=["colours first", "from 0 to 1", "batch of one"],
)
def test_images_of_other_forms_that_can_only_mean_one_thing(sent: np.ndarray, expected: int) -> None:
    found = READER.read(libero_message() | {"observation/image": sent}).images["agentview"]

    assert found.shape == (4, 6, 3) and found.dtype == np.uint8 and set(found.reshape(-1).tolist()) == {expected}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observation/wrist_image": ...}, "lacks 'observation/wrist_image'"),
        ({"prompt": ...}, "lacks 'prompt'"),
        ({"observation/state": ...}, "lacks 'observation/state'"),
        ({"observation/state": np.zeros(7)}, "state of 8 numbers, and 'observation/state' has 7"),
        ({"observation/state": np.full(8, np.nan)}, "not finite"),
        ({"observation/state": np.full(8, 1e300)}, "not finite"),
        ({"observation/state": "zeros"}, "should be numbers"),
        ({"observation/state": [[1, 2], [3]]}, "should be numbers"),
        ({"observation/state": np.zeros((2, 4))}, "should be numbers"),
        ({"observation/image": np.zeros((4, 4), np.uint8)}, r"shape \[4, 4\]"),
        ({"observation/image": np.zeros((0, 4, 3), np.uint8)}, "shape"),
        ({"observation/image": np.zeros((4, 4, 3), np.int16)}, "uint8, and is int16"),
        ({"observation/image": np.full((4, 4, 3), 255.0)}, "from 0 to 1"),
        ({"observation/image": b"jpeg"}, "is a bytes"),
        ({"prompt": 3}, "is int"),
        ({"prompt": "go" * 10_000}, "20000 characters"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_wrong_is_said_with_what_would_be_right(change: dict[str, Any], words: str) -> None:
    message = {key: value for key, value in (libero_message() | change).items() if value is not ...}

    with pytest.raises(InputError, match=words):
        READER.read(message)


def test_unknown_keys_are_answered_with_those_that_are_known() -> None:
    with pytest.raises(InputError) as told:
        READER.read({"front": image(), "\x1b[2J": 1})

    for words in ("'front'", "observation/wrist_image", "observation.images.agentview", "--layout FILE.yaml"):
        assert words in str(told.value)
    assert "\x1b" not in str(told.value)
    with pytest.raises(InputError, match="is a list"):
        READER.read([1])


def test_a_layout_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("cameras: {agentview: front, eye_in_hand: wrist}\nstate: [arm, hand]\ninstruction: say\n")
    layout = read_layout(str(file))

    observation = ObservationReader(CAMERAS, 8, layout).read(
        {"front": image(1), "wrist": image(2), "arm": np.zeros(7), "hand": 1.0, "say": "go"}
    )

    assert observation.images["eye_in_hand"][0, 0, 0] == 2 and observation.proprio[-1] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cameras: [front]\nstate: [a]\ninstruction: b", "cameras"),
        ("state: []\ninstruction: b", "state"),
        ("state: [a]", "instruction"),
        ("stat: [a]", "A layout has cameras"),
        ("- a", "layout"),
        ("a: [", "YAML"),
    ],
)
def test_a_layout_that_cannot_be_meant_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)

    with pytest.raises(InputError, match=words):
        read_layout(str(tmp_path / "mine.yaml"))


def test_a_layout_that_there_is_not() -> None:
    with pytest.raises(InputError, match="Did you mean 'libero'"):
        read_layout("liber")
    with pytest.raises(InputError, match="cannot be read"):
        read_layout("nowhere.yaml")


def test_cameras_that_a_layout_does_not_have_are_named() -> None:
    with pytest.raises(InputError, match="no key for front"):
        ObservationReader(("front",), 8, LAYOUTS["libero"])


@pytest.mark.parametrize("name", ["lerobot", "libero"])
def test_what_a_client_sends_is_read_as_it_was(name: str) -> None:
    observation = seen(pixel=5, state=0.75)

    found = ObservationReader(CAMERAS, 8, LAYOUTS[name]).read(to_message(observation, LAYOUTS[name]))

    np.testing.assert_array_equal(found.images["agentview"], observation.images["agentview"])
    np.testing.assert_array_equal(found.proprio, observation.proprio)
    assert found.instruction == observation.instruction
