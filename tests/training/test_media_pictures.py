"""What the pictures of actions are made of: units, paths, cameras, errors, and which samples are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from atlas.data.formats import open_dataset
from atlas.drawing.action_curves import panels
from atlas.drawing.camera_view import find_camera, following
from atlas.drawing.prediction_plots import sample_errors
from atlas.drawing.predictions import Predictions, frame_places, spread
from atlas.training.metrics import ActionErrors
from atlas.types import ActionSpec
from tests.action_spaces import ABSOLUTE
from tests.conftest import MakeLibero

SPEC = ActionSpec()


# ---- units -------------------------------------------------------------------------------------------------


def test_actions_are_read_in_millimetres_degrees_and_probabilities() -> None:
    action = np.array([1.0, -2.0, 0.0, 1.0, 0.0, 0.0, 0.5])

    values = SPEC.readable(action)
    shown = panels(SPEC, -np.ones(7), np.ones(7))

    np.testing.assert_allclose(values, [50, -100, 0, np.rad2deg(0.5), 0, 0, 0.75])
    assert action[0] == 1.0  # not changed
    units = ["mm per step"] * 3 + ["deg per step"] * 3 + ["P(close)"]
    assert [(p.name, p.unit) for p in shown] == list(zip(SPEC.names, units, strict=True))
    low, high = shown[0].limits or (0, 0)
    assert -60 < low < -50 and 50 < high < 60


def test_an_absolute_action_has_no_steps_in_its_units() -> None:
    units = [p.unit for p in panels(ABSOLUTE, -np.ones(7), np.ones(7))]
    assert units == ["mm", "mm", "mm", "deg", "deg", "deg", "P(close)"]


def test_a_commanded_path_is_the_sum_of_deltas_or_the_targets_themselves() -> None:
    chunk = np.zeros((3, 7))
    chunk[:, 0] = [1.0, 2.0, -1.0]

    path, targets = (spec.paths(chunk)[None] for spec in (SPEC, ABSOLUTE))

    np.testing.assert_allclose(path, [[0, 0, 0], [0.05, 0, 0], [0.15, 0, 0], [0.1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(targets[:, 0], [1, 2, -1], atol=1e-12)


# ---- cameras -----------------------------------------------------------------------------------------------


def test_a_cube_is_seen_where_the_camera_of_the_model_says(cubes_dataset: Path) -> None:
    """The simulator's state says where the red cube is; there the picture is red."""
    dataset = open_dataset(cubes_dataset)
    for number in range(len(dataset)):
        episode = dataset.episode(number)
        camera = find_camera(episode.model_xml, "agentview")
        assert camera is not None and episode.sim_states is not None
        red_cube = episode.sim_states[0, 10:13]  # after the time, seven joints and two fingers
        pixels = episode.images("agentview", [0])[0]

        projected = camera.project(red_cube[None], *pixels.shape[:2])

        assert projected is not None
        right, down = np.floor(projected[0]).astype(int)
        red, green, blue = pixels[down, right].astype(int)
        assert red > 1.5 * max(green, blue), (number, projected, pixels[down, right])


def test_a_camera_on_the_hand_or_one_that_is_not_there_is_not_used(cubes_dataset: Path) -> None:
    xml = open_dataset(cubes_dataset).episode(0).model_xml
    assert xml is not None
    assert find_camera(xml, "robot0_eye_in_hand") is None
    assert find_camera(xml, "elsewhere") is None
    assert find_camera(None, "agentview") is None
    assert find_camera("<mujoco", "agentview") is None
    assert find_camera(xml.replace('name="agentview"', 'name="agentview" mode="targetbody"'), "agentview") is None


def test_a_point_behind_the_camera_is_not_projected(cubes_dataset: Path) -> None:
    camera = find_camera(open_dataset(cubes_dataset).episode(0).model_xml, "agentview")
    assert camera is not None
    behind = camera.position + camera.rotation[:, 2]
    assert camera.project(np.stack([behind, behind]), 32, 32) is None


def test_how_far_the_arm_follows_is_learned_from_the_recordings(cubes_dataset: Path, make_libero: MakeLibero) -> None:
    dataset, random = open_dataset(cubes_dataset), open_dataset(make_libero())
    episodes = [dataset.episode(i) for i in range(len(dataset))]

    factor = following(episodes, dataset.action_spec, horizon=8)

    assert factor is not None and 0.1 < factor < 0.6
    travelled, promised = [], []
    for episode in episodes:
        path = factor * dataset.action_spec.paths(episode.actions[:8])[None][-1]
        promised.append(path)
        travelled.append(episode.proprio[8, :3] - episode.proprio[0, :3])
    wrong = np.linalg.norm(np.array(travelled) - promised, axis=1)
    assert np.median(wrong) < 0.5 * np.median(np.linalg.norm(travelled, axis=1))
    # Numbers that are no hand's position do not follow, and no path is drawn into pictures then.
    assert following([random.episode(i) for i in range(5)], random.action_spec, horizon=4) is None


# ---- samples -----------------------------------------------------------------------------------------------


def test_the_errors_of_samples_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    predicted, recorded = (rng.uniform(-1, 1, (6, 4, 7)).astype(np.float32) for _ in range(2))
    is_pad = np.arange(4) >= np.array([4, 4, 1, 2, 3, 4])[:, None]
    names = ("pose_l2_error", "position_error_mm", "gripper_error")

    errors = sample_errors(Predictions(np.arange(6), predicted, recorded, is_pad), SPEC)

    for sample in range(6):
        metrics = ActionErrors(SPEC, ["a task"], torch.device("cpu"))
        one = [torch.from_numpy(values[sample : sample + 1]) for values in (predicted, recorded, is_pad)]
        metrics.add(*one, ["a task"])
        expected = metrics.read(Accelerator(cpu=True))
        assert errors[sample].tolist() == pytest.approx([expected[f"val/{name}"] for name in names], rel=1e-6)


def test_samples_know_their_episode_and_frame(make_libero: MakeLibero) -> None:
    dataset = open_dataset(make_libero({"open it": [12, 9, 11]}))
    places = frame_places(dataset, np.array([0, 2]))
    assert len(places) == 12 + 11
    assert places[11].tolist() == [0, 11] and places[12].tolist() == [2, 0]


@pytest.mark.parametrize(("total", "most"), [(100, 4), (5, 5), (3, 8), (1, 1)])
def test_chosen_samples_are_spread_over_all(total: int, most: int) -> None:
    chosen = spread(total, most)
    assert len(chosen) == len(set(chosen.tolist())) == min(total, most)
    assert chosen.min() >= 0 and chosen.max() < total
    assert np.diff(np.concatenate([[-1], chosen, [total]])).max() <= total / len(chosen) + 1


def test_shares_of_several_ranks_are_put_in_order_again() -> None:
    def share(index: list[int]) -> Predictions:
        values = np.array(index, np.float32)[:, None, None] * np.ones((1, 2, 7), np.float32)
        return Predictions(np.array(index), values, values, np.zeros((len(index), 2), bool))

    whole = Predictions.merge([share([0, 2, 4]), share([1, 3]), Predictions.none(2, 7)])

    assert whole.index.tolist() == [0, 1, 2, 3, 4]
    assert whole.predicted[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert whole.of(np.array([9, 3, 1])).index.tolist() == [1, 3]
