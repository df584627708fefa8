"""Several datasets as one: what is combined, what is refused, and what an epoch draws."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import atlas
from atlas.config import Config, load_config
from atlas.data.formats import open_configured, open_dataset
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.data.sampling.balance import describe_draws
from atlas.data.sampling.order import TrainOrder
from atlas.data.sampling.split import split_dataset, split_episodes
from atlas.data.training_data import TrainingData, open_training_data
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.types import Observation
from tests.bad_input.table import SMALL
from tests.conftest import MakeLibero, made_up_episode
from tests.data.lerobot_folders import FIXTURES, IMAGE

DRAWER = {"open the drawer": [12, 9, 11], "close the drawer": [10, 10]}
CUPS = {"close the drawer": [8, 8], "stack the cups": [30, 40, 35]}

Mix = Callable[..., Config]


@pytest.fixture
def mix(make_libero: MakeLibero) -> Mix:
    """A config with two datasets; `b` and the keywords are further keys of the second one and of `data`."""
    paths = [make_libero(DRAWER, folder="drawer"), make_libero(CUPS, folder="cups")]

    def make(b: dict[str, Any] | None = None, *overrides: str, **data: Any) -> Config:
        second = {"path": str(paths[1]), **(b or {})}
        values = {"datasets": [{"path": str(paths[0])}, second], "image_size": 32, "action_horizon": 4, **data}
        return load_config({"data": values}, [option for option in SMALL if "data." not in option] + [*overrides])

    return make


def test_a_mixture_is_its_datasets_one_after_the_other(mix: Mix) -> None:
    config = mix()
    dataset, cameras = open_configured(config.data)
    first, second = (open_dataset(source.path) for source in config.data.sources)

    assert len(dataset) == len(first) + len(second) and cameras == ["agentview", "eye_in_hand"]
    assert dataset.tasks == ["open the drawer", "close the drawer", "stack the cups"]  # equal instructions are one
    for number in range(len(dataset)):
        mine = dataset.episode(number)
        alone = first.episode(number) if number < len(first) else second.episode(number - len(first))
        assert mine.instruction == alone.instruction == dataset.tasks[dataset.task_of[number]]
        assert len(mine) == len(alone) == dataset.lengths[number]
        np.testing.assert_array_equal(mine.actions, alone.actions)
        np.testing.assert_array_equal(dataset.numbers().proprio[dataset.rows(number)], alone.proprio)
        np.testing.assert_array_equal(mine.images("eye_in_hand", [2, 0]), alone.images("eye_in_hand", [2, 0]))


def test_each_source_is_read_and_scaled_in_its_own_way(mix: Mix) -> None:
    data = open_training_data(mix({"orientation": "upright", "drop_noops": True, "name": "turned"}))
    alone = open_dataset(data.dataset.sources[1].dataset.path, orientation="upright", drop_noops=True)
    samples = np.flatnonzero(data.train.source_of == 1)
    episode, frame = data.train.place(int(samples[3]))
    theirs = alone.episode(episode - 5)

    batch = data.train.__getitems__([(0, int(samples[3])), (0, 0)])
    statistics = data.train.statistics()

    assert batch.source.tolist() == [1, 0] and batch.instruction == [theirs.instruction, "open the drawer"]
    np.testing.assert_array_equal(batch.images[0, 1].permute(1, 2, 0), theirs.images("eye_in_hand", [frame])[0])
    np.testing.assert_array_equal(batch.actions[0], theirs.actions[frame : frame + 4])
    np.testing.assert_array_equal(batch.proprio[0], theirs.proprio[frame])
    assert [s.source for s in statistics] == ["drawer", "turned"]
    train, _ = split_episodes(alone.task_of, 0.05, 0)
    actions = np.concatenate([alone.episode(i).actions for i in train])
    np.testing.assert_allclose(statistics[1].action.max, actions.max(0))
    assert statistics[1].frames == len(actions)


def test_every_source_is_split_as_it_would_be_alone(mix: Mix) -> None:
    dataset, _ = open_configured(mix().data)
    train, val = split_dataset(dataset, 0.3, seed=4)

    assert sorted([*train, *val]) == list(range(len(dataset)))
    for source in dataset.sources:
        mine = val[(val >= source.first) & (val < source.first + len(source.dataset))]
        assert len(mine)
        np.testing.assert_array_equal(mine - source.first, split_episodes(source.dataset.task_of, 0.3, 4)[1])


def test_one_source_alone_gives_what_its_path_gives(mix: Mix) -> None:
    path = mix().data.sources[0].path
    single, mixed = (
        open_training_data(load_config({"data": {"image_size": 32, "action_horizon": 4, **values}}))
        for values in ({"path": path}, {"datasets": [{"path": path}]})
    )

    assert single.train.statistics() == mixed.train.statistics()
    samples = [next(TrainOrder(data.draws, 3, 8).batches(0, 1, 2)) for data in (single, mixed)]
    assert samples[0] == samples[1]
    batches = [data.train.__getitems__(samples[0]) for data in (single, mixed)]
    for name in ("images", "proprio", "actions", "source", "key"):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name)), name


def drawn(data: TrainingData) -> np.ndarray:
    samples, _ = data.draws.epoch(seed=0, epoch=0)
    assert len(samples) == len(data.train)
    return samples


def shares(numbers: np.ndarray) -> np.ndarray:
    return np.bincount(numbers) / len(numbers)


def test_an_epoch_is_balanced_as_the_config_says(mix: Mix) -> None:
    weighted = open_training_data(mix({"weight": 3}))
    by_dataset = open_training_data(mix(balance="dataset"))
    by_task = open_training_data(mix(balance="task"))
    by_samples = open_training_data(mix(balance="samples"))

    one = 1 / len(weighted.train)
    np.testing.assert_allclose(shares(weighted.train.source_of[drawn(weighted)]), [1 / 4, 3 / 4], atol=one)
    np.testing.assert_allclose(shares(by_dataset.train.source_of[drawn(by_dataset)]), [1 / 2, 1 / 2], atol=one)
    np.testing.assert_allclose(shares(by_task.train.task_of[drawn(by_task)]), [1 / 3] * 3, atol=one)
    assert sorted(drawn(by_samples)) == list(range(len(by_samples.train)))
    described = describe_draws(weighted.train, weighted.draws)
    assert "25% of 'drawer'" in described and "75% of 'cups'" in described


def test_one_dataset_may_be_balanced_by_its_tasks(make_libero: MakeLibero) -> None:
    values = {"path": str(make_libero({"long": [40, 40], "short": [8, 8]})), "balance": "task", "action_horizon": 4}
    data = open_training_data(load_config({"data": values}))

    assert shares(data.train.task_of[drawn(data)]).tolist() == [0.5, 0.5]


# ---- what must agree ---------------------------------------------------------------------------------------


def test_cameras_are_brought_together_by_name(mix: Mix) -> None:
    swapped = {"cameras": {"eye_in_hand": "agentview", "agentview": "eye_in_hand"}}
    dataset, cameras = open_configured(mix(swapped).data)
    one, only = open_configured(
        mix({"cameras": {"front": "eye_in_hand", "agentview": "agentview"}}, cameras=["agentview"]).data
    )
    alone = dataset.sources[1].dataset.episode(0)

    assert cameras == ["agentview", "eye_in_hand"] and only == one.cameras == ["agentview"]
    np.testing.assert_array_equal(dataset.episode(5).images("agentview", [3]), alone.images("eye_in_hand", [3]))


@pytest.mark.parametrize(
    ("source", "data", "words"),
    [
        ({"cameras": ["agentview"]}, {}, ["'cups' lacks ['eye_in_hand']", "data.cameras=[agentview]", "cameras: {"]),
        ({"cameras": {"front": "agentview"}}, {}, ["'drawer' lacks ['front']", "'cups' lacks ['agentview'"]),
        ({"cameras": {"agentview": "top"}}, {}, ["'cups'", "['top']", "['agentview', 'eye_in_hand']"]),
        ({}, {"cameras": ["agentview", "top"]}, ["'drawer' lacks ['top']", "'cups' lacks ['top']"]),
        ({"path": "nowhere"}, {}, ["data.datasets.1 ('nowhere')", "no dataset at nowhere"]),
        ({"instruction": "lift"}, {}, ["data.datasets.1 ('cups')", "'lift'", "its own"]),
        ({"weight": 1e-6}, {}, ["The dataset 'cups'", "larger weight"]),
    ],
)
def test_what_does_not_fit_together_is_refused(
    mix: Mix, source: dict[str, Any], data: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        open_training_data(mix(source, **data))

    assert all(word in str(error.value) for word in words), str(error.value)


def lerobot(spec: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    keys = {"agentview": "observation.images.image", "eye_in_hand": "observation.images.wrist_image"}
    features: dict[str, Any] = {"cameras": keys}
    if spec is not None:
        features["action_spec"] = {"control_hz": 20, **spec}
    return {"path": str(FIXTURES / IMAGE), "features": features | more}


def test_formats_mix_and_units_are_brought_together(mix: Mix) -> None:
    """Positions to go to in metres beside the same in millimetres."""
    absolute = {"delta": False}
    values = {"datasets": [lerobot(absolute), lerobot(absolute | {"position_unit_m": 0.001}) | {"name": "millimetres"}]}
    dataset, _ = open_configured(load_config({"data": values}).data)
    libero, _ = open_configured(mix(lerobot(None)).data)

    metres, millimetres = (dataset.episode(number).actions for number in (0, len(dataset) // 2))
    np.testing.assert_allclose(millimetres[:, :3], metres[:, :3] / 1000, rtol=1e-6)
    np.testing.assert_array_equal(millimetres[:, 3:], metres[:, 3:])
    assert [source.dataset.format for source in libero.sources] == ["libero-hdf5", "lerobot-v3.0"]
    np.testing.assert_array_equal(libero.episode(5).actions, open_dataset(FIXTURES / IMAGE).episode(0).actions)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            lerobot({"delta": False}),
            ["delta of position is True in 'drawer' and False in", "action_spec"],
        ),
        (lerobot({"control_hz": 10}), ["control_hz is 20.0 in 'drawer' and 10.0 in", "leave it out"]),
        (lerobot({"rotation": [3, 3]}), ["groups is ['position dx, dy, dz", "rotation rx, ry, rz"]),
        (lerobot(None, proprio="action"), ["proprio", "8 in 'drawer'", "7 in 'lerobot_v30_image'"]),
    ],
)
def test_actions_and_proprio_that_mean_different_things_are_refused(
    mix: Mix, source: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        open_configured(mix(source).data)

    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_fingerprint_follows_every_source(mix: Mix) -> None:
    before = open_configured(mix().data)[0].fingerprint()

    assert open_configured(mix().data)[0].fingerprint() == before
    assert open_configured(mix({"orientation": "mirrored"}).data)[0].fingerprint() != before
    assert open_configured(mix({"name": "other"}).data)[0].fingerprint() != before


# ---- training ----------------------------------------------------------------------------------------------


def test_a_mixture_is_trained_on_and_its_policy_knows_each_source(
    mix: Mix, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    episodes = [made_up_episode(np.random.default_rng(i), "lift the cube", 20, i) for i in range(2)]
    write_libero_file(tmp_path / "worlds" / "lift_demo.hdf5", "lift the cube", episodes, {"env_name": "cubes"})
    settings = [f"output_dir={tmp_path}", "run_name=mixed", "data.batch_size=8", "data.num_workers=0"]

    result = atlas.train(mix({"path": str(tmp_path / "worlds"), "weight": 2}, *settings))

    processor = json.loads((result.best_checkpoint / "policy" / "processor.json").read_text())
    assert [(s["source"], s["environment"]) for s in processor["statistics"]] == [("drawer", None), ("worlds", "cubes")]
    assert "67% of 'worlds'" in (tmp_path / "mixed" / "train.log").read_text()
    assert {"val/open_the_drawer/pose_l2_error", "val/lift_the_cube/pose_l2_error"} <= set(result.metrics)

    policy = load_policy(result.best_checkpoint)
    asked: list[list[int]] = []
    with (
        caplog.at_level(logging.INFO),
        mock.patch.object(
            policy, "sample", side_effect=lambda batch: asked.append(batch.source.tolist()) or torch.zeros(1, 4, 7)
        ),
    ):
        observation = Observation(
            {camera: np.zeros((32, 32, 3), np.uint8) for camera in policy.processor.cameras}, np.zeros(8), "lift"
        )
        ChunkExecutor(policy, execute=1, environment="cubes").plan({0: observation})
    assert asked == [[1]] and "use the statistics of 'worlds', the only one recorded in cubes" in caplog.text
