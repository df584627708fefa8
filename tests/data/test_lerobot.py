"""Reading LeRobot's layouts: what was written is read, conversions are logged, and faults are named."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import atlas
from atlas.config import DataConfig, dump_yaml, load_config
from atlas.config.action_sections import SourceActionsConfig
from atlas.config.data_sections import FeaturesConfig
from atlas.data.formats import open_configured, open_dataset
from atlas.data.sampling.chunks import ChunkDataset
from atlas.errors import InputError
from atlas.types import ActionGroup, ActionSpec
from tests.action_spaces import GRIPPER
from tests.data.lerobot_folders import (
    FIXTURES,
    IMAGE,
    VIDEO,
    as_version_2,
    copy_fixture,
    edit_feature,
    edit_info,
    expected,
    rename_feature,
    replace_column,
    truncate,
)

EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"
FILM = "videos/observation.images.image/chunk-000/file-000.mp4"
STATE, ACTION, FRONT = "observation.state", "action", "observation.images.image"


def versions(tmp_path: Path, name: str) -> list[Path]:
    """A fixture in each of the versions."""
    old = [as_version_2(FIXTURES / name, tmp_path / version, version) for version in ("v2.1", "v2.0")]
    return [FIXTURES / name, *old]


@pytest.mark.parametrize("name", [VIDEO, IMAGE])
def test_every_frame_is_what_was_put_in(name: str, tmp_path: Path) -> None:
    for path in versions(tmp_path, name):
        truth, dataset = expected(name), open_dataset(path, orientation="upright")
        assert dataset.lengths.tolist() == truth["lengths"] and dataset.fps == truth["fps"]
        for frame in truth["frames"]:
            episode, number = dataset.episode(frame["episode"]), frame["frame"]
            assert episode.instruction == frame["task"]
            np.testing.assert_array_equal(episode.actions[number], np.float32(frame["action"]))
            np.testing.assert_array_equal(episode.proprio[number], np.float32(frame["state"]))
            for camera, source in zip(dataset.cameras, truth["cameras"], strict=True):
                check_image(episode.images(camera, [number])[0], frame, source)


def check_image(image: np.ndarray, frame: dict[str, Any], source: str) -> None:
    sha256 = frame[f"sha256_{source}"]
    if sha256 is not None:
        assert hashlib.sha256(image.tobytes()).hexdigest().startswith(sha256)
    within = 3.0 if sha256 is None else 0.001  # videos are compressed
    quarter = image[: image.shape[0] // 2, : image.shape[1] // 2]
    np.testing.assert_allclose(image.mean((0, 1)), frame[f"mean_rgb_{source}"], atol=within)
    np.testing.assert_allclose(quarter.mean((0, 1)), frame[f"top_left_{source}"], atol=within)


@pytest.mark.parametrize("name", [VIDEO, IMAGE])
def test_a_known_conversion_of_libero_needs_no_config(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="atlas.data.lerobot"):
        dataset = open_dataset(FIXTURES / name)

    assert dataset.cameras == ["agentview", "eye_in_hand"]
    assert dataset.action_spec == ActionSpec() and dataset.proprio_dim == 8
    stored = open_dataset(FIXTURES / name, orientation="upright").episode(0).images("agentview", [1])
    np.testing.assert_array_equal(dataset.episode(0).images("agentview", [1]), stored[:, :, ::-1])
    assert "stored mirrored" in caplog.text and "gripper 6 (-1 open, 1 closed)" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_names_of_openpis_conversion_are_known(tmp_path: Path) -> None:
    root = copy_fixture(IMAGE, tmp_path / "set")
    for old, new in ((FRONT, "image"), ("observation.images.wrist_image", "wrist_image")):
        rename_feature(root, old, new)
    rename_feature(root, STATE, "state")
    rename_feature(root, ACTION, "actions")

    for path in (root, as_version_2(root, tmp_path / "old", "v2.0")):
        dataset, same = open_dataset(path), open_dataset(FIXTURES / IMAGE)
        assert dataset.cameras == ["agentview", "eye_in_hand"]
        np.testing.assert_array_equal(dataset.episode(1).proprio, same.episode(1).proprio)
        np.testing.assert_array_equal(
            dataset.episode(2).images("eye_in_hand", [3]), same.episode(2).images("eye_in_hand", [3])
        )


def test_openvlas_gripper_is_recognised_turned_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = copy_fixture(IMAGE, tmp_path / "set")
    actions = np.array(pq.read_table(root / DATA).column(ACTION).to_pylist(), np.float32)
    actions[:, 6] = actions[:, 6] < 0  # 1 open, 0 closed
    replace_column(root / DATA, ACTION, actions.tolist())

    read = open_dataset(root).episode(0).actions

    np.testing.assert_array_equal(read, open_dataset(FIXTURES / IMAGE).episode(0).actions)
    assert "1 open and 0 closed" in caplog.text
    caplog.clear()
    assert open_dataset(root).episode(0).actions is not None and "1 open and 0 closed" in caplog.text  # from the cache


# Sets that are not known


def unknown_set(tmp_path: Path, name: str = VIDEO) -> Path:
    """A dataset whose camera has another name than any that is known."""
    root = copy_fixture(name, tmp_path / "set")
    rename_feature(root, FRONT, "observation.images.top")
    return root


def test_an_unknown_set_is_read_by_lerobots_names_and_what_is_assumed_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset(unknown_set(tmp_path))

    assert dataset.cameras == ["top", "image2"] and dataset.orientation == "upright"  # type: ignore[attr-defined]
    assert dataset.action_spec == ActionSpec(control_hz=10.0)
    assert "actions are taken for LIBERO's" in caplog.text and "taken to be stored upright" in caplog.text


def test_a_mapping_says_what_is_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = unknown_set(tmp_path)
    actions = np.array(pq.read_table(root / DATA).column(ACTION).to_pylist(), np.float32)
    source = np.zeros((len(actions), 9), np.float32)  # gripper first, in metres and radians, and two that mean nothing
    source[:, 0] = (1 - actions[:, 6]) * 0.02  # 0.04 open, 0 closed
    source[:, 2:5], source[:, 5:8] = actions[:, :3] * 0.05, actions[:, 3:6] * 0.5
    replace_column(root / DATA, ACTION, source.tolist())
    edit_feature(root, ACTION, shape=[9])
    features = FeaturesConfig(
        cameras={"front": "observation.images.top"},
        proprio=[STATE, "timestamp"],
        action_spec=SourceActionsConfig(
            position=(2, 5),
            rotation=(5, 8),
            gripper=0,
            gripper_open=0.04,
            gripper_closed=0.0,
            position_unit_m=1.0,
            rotation_unit_rad=1.0,
            control_hz=20,
        ),
    )

    with caplog.at_level(logging.INFO, logger="atlas.data.lerobot"):
        dataset = open_dataset(root, orientation="mirrored", features=features)

    same = open_dataset(FIXTURES / VIDEO)
    assert dataset.cameras == ["front"] and dataset.action_spec == ActionSpec() and dataset.proprio_dim == 9
    np.testing.assert_allclose(dataset.episode(1).actions, same.episode(1).actions, atol=1e-6)
    np.testing.assert_array_equal(dataset.episode(1).proprio[:, :8], same.episode(1).proprio)
    np.testing.assert_allclose(dataset.episode(1).proprio[:, 8], np.arange(14) / 10, atol=1e-6)
    np.testing.assert_array_equal(dataset.episode(1).images("front", [5]), same.episode(1).images("agentview", [5]))
    assert "scaled to 1 = 0.05 m and 0.5 rad and the gripper mapped to -1 open, 1 closed" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and record.name != __name__]


def test_actions_that_are_poses_keep_their_units_and_may_have_no_rotation() -> None:
    features = FeaturesConfig(
        action_spec=SourceActionsConfig(position=(0, 3), rotation=(3, 3), gripper=6, delta=False, position_unit_m=0.001)
    )

    dataset = open_dataset(FIXTURES / VIDEO, features=features)

    millimetres = ActionGroup("position", ("x", "y", "z"), unit=0.001)
    assert dataset.action_spec == ActionSpec((millimetres, GRIPPER), 10.0)
    whole = open_dataset(FIXTURES / VIDEO).episode(0).actions
    np.testing.assert_array_equal(dataset.episode(0).actions, whole[:, [0, 1, 2, 6]])


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"cameras": {"front": "observation.images.imag"}}, ["data.features.cameras.front", "Did you mean", FRONT]),
        ({"cameras": {"front": STATE}}, ["data.features.cameras.front", STATE, "float32", "expected a video or image"]),
        ({"proprio": "state"}, ["data.features.proprio", "no feature 'state'", STATE]),
        ({"proprio": [STATE, FRONT]}, ["data.features.proprio", FRONT, "video", "expected numbers"]),
        ({"action": "actions"}, ["data.features.action", "Did you mean 'action'"]),
        ({"action_spec": {"gripper": 7}}, ["data.features.action_spec uses 8 dimensions", "'action'", "has 7"]),
        ({"action_spec": {"gripper_open": 0, "gripper_closed": 0.5}}, ["gripper, dimension 6", "[-1, 1]", "0 (open)"]),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(features: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        open_dataset(FIXTURES / VIDEO, features=FeaturesConfig.model_validate(features)).episode(0).actions  # noqa: B018
    for word in words:
        assert word in str(error.value)


def test_actions_of_another_width_need_a_mapping(tmp_path: Path) -> None:
    root = unknown_set(tmp_path)
    edit_feature(root, ACTION, shape=[14], names=[f"joint_{i}" for i in range(14)])

    with pytest.raises(
        InputError, match=r"info\.json: 'action' has 14 numbers .*joint_13.*data\.features\.action_spec"
    ):
        open_dataset(root)
    edit_feature(root, ACTION, shape=[7], names={"motors": [*(f"joint_{i}" for i in range(6)), "gripper"]})
    with pytest.raises(InputError, match=r"'action' seems to hold joints .*data\.features\.action_spec"):
        open_dataset(root)


def test_an_unknown_gripper_of_0_to_1_is_asked_about(tmp_path: Path) -> None:
    root = unknown_set(tmp_path)
    actions = np.array(pq.read_table(root / DATA).column(ACTION).to_pylist(), np.float32)
    actions[:, 6] = actions[:, 6] > 0
    replace_column(root / DATA, ACTION, actions.tolist())

    with pytest.raises(InputError, match=r"within \[0, 1\].*gripper_open: 1, gripper_closed: 0.*other way round"):
        open_dataset(root).episode(0).actions  # noqa: B018
    spec = SourceActionsConfig(gripper_open=0, gripper_closed=1)
    read = open_dataset(root, features=FeaturesConfig(action_spec=spec)).episode(0).actions
    np.testing.assert_array_equal(read, open_dataset(FIXTURES / VIDEO).episode(0).actions)


@pytest.mark.parametrize(("keys", "stated"), [("position_unit_m: 1.0", False), ("gripper_open: -1.0", True)])
def test_what_was_not_stated_of_a_gripper_is_not_stated_by_a_runs_config_either(keys: str, stated: bool) -> None:
    """Its ranks, and processes that resume it, read the config that the run has written."""
    config = load_config({}, [f"data.features.action_spec={{{keys}}}"])

    read = load_config(yaml.safe_load(dump_yaml(config)))

    assert read == config
    assert read.data.features.action_spec is not None and read.data.features.action_spec.gripper_stated is stated


def test_a_mapping_is_for_lerobot_datasets(make_libero: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"data\.features is for LeRobot datasets"):
        open_configured(DataConfig(path=str(make_libero()), features=FeaturesConfig(action="action")))


# What is read, and what is not


def test_numbers_statistics_and_chunks_are_read_without_any_video(tmp_path: Path) -> None:
    dataset = open_dataset(copy_fixture(VIDEO, tmp_path / "set"))
    shutil.rmtree(tmp_path / "set" / "videos")

    chunks = ChunkDataset(dataset, np.arange(4), dataset.cameras, image_size=64, horizon=4)

    assert chunks.statistics()[0].frames == 40 and dataset.episode(3).rewards is None
    with pytest.raises(InputError, match=r"The video .*file-000\.mp4 is missing"):
        dataset.episode(0).images("agentview", [0])


def test_only_the_cameras_that_are_used_need_to_be_there(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    shutil.rmtree(root / "videos" / "observation.images.image2")

    dataset, cameras = open_configured(DataConfig(path=str(root), cameras=["agentview"]))

    assert dataset.cameras == cameras == ["agentview"]
    with pytest.raises(InputError, match=r"lacks 1 of its files, such as videos/observation\.images\.image2/"):
        open_configured(DataConfig(path=str(root)))
    with pytest.raises(InputError, match=r"data\.cameras names \['front'\]"):
        open_configured(DataConfig(path=str(root), cameras=["front"]))


def test_numbers_are_mapped_into_memory_and_made_once(own_cache: Path) -> None:
    first = open_dataset(FIXTURES / VIDEO).episode(1).actions
    made = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.npy")}

    again = open_dataset(FIXTURES / VIDEO).episode(1).actions

    assert {path.name for path in made} == {"action.npy", "proprio.npy", "timestamp.npy"}
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.npy")} == made
    assert isinstance(again.base, np.ndarray) and not again.flags.owndata and not again.flags.writeable
    np.testing.assert_array_equal(first, again)
    assert not list(own_cache.rglob("*.partial"))


def test_numbers_of_changed_data_are_made_again(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    before = open_dataset(root).episode(0).actions.copy()
    actions = pq.read_table(root / DATA).column(ACTION).to_pylist()
    replace_column(root / DATA, ACTION, [[value / 2 for value in row[:6]] + row[6:] for row in actions])

    np.testing.assert_array_equal(open_dataset(root).episode(0).actions[:, :6], before[:, :6] / 2)


def test_noops_are_dropped_when_asked(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    actions = np.array(pq.read_table(root / DATA).column(ACTION).to_pylist(), np.float32)
    actions[9:23, 6] = np.where(np.arange(14) < 4, -1, 1)  # episode 1; the gripper closes at its frame 4
    actions[9 + np.array([1, 2, 4, 6]), :6] = 0
    replace_column(root / DATA, ACTION, actions.tolist())
    kept = [0, 3, 4, 5, *range(7, 14)]

    whole, dataset = open_dataset(root), open_dataset(root, drop_noops=True)

    assert dataset.lengths.tolist() == [9, 11, 6, 11] and whole.lengths.tolist() == [9, 14, 6, 11]
    np.testing.assert_array_equal(dataset.episode(1).actions, whole.episode(1).actions[kept])
    np.testing.assert_array_equal(dataset.episode(1).proprio, whole.episode(1).proprio[kept])
    images = dataset.episode(1).images("agentview", [1, 4])
    np.testing.assert_array_equal(images, whole.episode(1).images("agentview", [3, 7]))
    assert dataset.fingerprint() != whole.fingerprint()


def test_rewards_and_success_are_read_where_there_are_any(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    table = pq.read_table(root / DATA)
    last = np.isin(np.arange(40), [8, 22])  # of the first two episodes
    table = table.append_column("next.reward", pa.array(last.astype(np.float32)))
    pq.write_table(table.append_column("next.success", pa.array(last)), root / DATA)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features |= {
        f"next.{name}": {"dtype": kind, "shape": [1]} for name, kind in (("reward", "float32"), ("success", "bool"))
    }
    edit_info(root, features=features)

    dataset = open_dataset(root)

    assert [dataset.episode(i).success for i in range(4)] == [True, True, False, False]
    rewards = dataset.episode(0).rewards
    assert rewards is not None and rewards.tolist() == [0] * 8 + [1]


def test_channel_first_shapes_are_read_by_their_names(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    edit_feature(root, FRONT, shape=[3, 64, 64], names=["channel", "height", "width"])

    assert open_dataset(root).image_size("agentview") == (64, 64)


def test_the_tasks_table_of_older_writers_is_read(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    tasks = pq.read_table(root / "meta/tasks.parquet")
    names = ["task_index", "__index_level_0__"]
    pq.write_table(tasks.select(["task_index", "task"]).rename_columns(names), root / "meta/tasks.parquet")

    assert open_dataset(root).tasks == open_dataset(FIXTURES / VIDEO).tasks


def test_tasks_are_told_apart_by_their_text_and_unused_ones_left_out(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    tasks = pq.read_table(root / "meta/tasks.parquet").to_pylist()
    tasks = [{"task_index": 7, "task": "never done"}, *tasks, {"task_index": 9, "task": tasks[0]["task"]}]
    pq.write_table(pa.Table.from_pylist(tasks), root / "meta/tasks.parquet")
    numbers = pq.read_table(root / DATA).column("task_index").to_pylist()
    replace_column(root / DATA, "task_index", [9] * 9 + numbers[9:])  # episode 0, with another number for the same text

    dataset = open_dataset(root)

    assert dataset.tasks == open_dataset(FIXTURES / VIDEO).tasks
    assert dataset.episode(0).actions.shape == (9, 7)


# Faults


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def break_values(root: Path) -> None:
    actions = pq.read_table(root / DATA).column(ACTION).to_pylist()
    actions[12][3] = float("nan")
    replace_column(root / DATA, ACTION, actions)


def other_task(root: Path) -> None:
    numbers = pq.read_table(root / DATA).column("task_index").to_pylist()
    replace_column(root / DATA, "task_index", [*numbers[:-1], 0])


def two_tasks(root: Path) -> None:
    tasks = pq.read_table(root / EPISODES).column("tasks").to_pylist()
    tasks[1] = ["first this", "then that"]
    replace_column(root / EPISODES, "tasks", tasks)


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "an unknown version": (
        lambda root: edit_info(root, codebase_version="v4.1"),
        ["info.json", "codebase_version is 'v4.1'", "v3.0, v2.1, v2.0"],
    ),
    "no version": (lambda root: edit_info(root, codebase_version=None), ["info.json", "codebase_version is None"]),
    "no info": (lambda root: (root / "meta/info.json").unlink(), ["meta/info.json cannot be read"]),
    "info that is cut off": (lambda root: truncate(root / "meta/info.json"), ["info.json is not valid JSON"]),
    "no rate": (lambda root: edit_info(root, fps=0), ["info.json", "'fps' is 0"]),
    "a path out of the folder": (
        lambda root: edit_info(root, data_path="../../x.parquet"),
        ["info.json: data_path", "leads out"],
    ),
    "a path that asks for a width without end": (
        lambda root: edit_info(root, data_path="data/{chunk_index:099999999999d}/{file_index}.parquet"),
        ["info.json", "data_path", "small width"],
    ),
    "a path that cuts its parts": (
        lambda root: edit_info(root, data_path="{chunk_index!s:.>2.0}/{file_index:03d}.parquet"),
        ["info.json", "data_path", "{chunk_index!s:.>2.0}"],
    ),
    "a video's path that looks into its parts": (
        lambda root: edit_info(root, video_path="{video_key.__class__}/{chunk_index}/{file_index}.mp4"),
        ["info.json", "video_path"],
    ),
    "info that is nested without end": (
        lambda root: (root / "meta/info.json").write_text("[" * 100_000),
        ["info.json is not valid JSON"],
    ),
    "episodes that say that they are long": (
        lambda root: replace_column(root / EPISODES, "length", [2**40] * 4),
        ["meta/episodes"],
    ),
    "a path of other parts": (
        lambda root: edit_info(root, data_path="data/{episode}.parquet"),
        ["info.json", "data_path", "data/{episode}.parquet", "chunk_index, file_index"],
    ),
    "no camera": (lambda root: edit_feature(root, FRONT, dtype=3), ["info.json", FRONT, "dtype and shape"]),
    "no state": (lambda root: rename_feature(root, STATE, "pose"), ["no feature 'observation.state'", "'pose'"]),
    "fewer episodes": (lambda root: edit_info(root, total_episodes=5), ["total_episodes is 5", "has 4"]),
    "fewer frames": (lambda root: edit_info(root, total_frames=41), ["total_frames is 41", "has 40"]),
    "no episodes": (lambda root: (root / EPISODES).unlink(), ["meta/episodes holds no Parquet file"]),
    "episodes that are cut off": (lambda root: truncate(root / EPISODES), [EPISODES, "cannot be read as Parquet"]),
    "episodes without a column": (
        lambda root: rewrite(root / EPISODES, lambda table: table.drop_columns(["dataset_from_index"])),
        [EPISODES, "lacks the column 'dataset_from_index'"],
    ),
    "episodes without a place in the video": (
        lambda root: rewrite(root / EPISODES, lambda t: t.drop_columns([f"videos/{FRONT}/from_timestamp"])),
        [EPISODES, f"lacks the column 'videos/{FRONT}/from_timestamp'"],
    ),
    "an episode of another length": (
        lambda root: replace_column(root / EPISODES, "length", [9, 13, 7, 11]),
        ["meta/episodes", "episode 1 has length 13", "rows are 9 to 23"],
    ),
    "two tasks that are not known": (two_tasks, ["tasks.parquet lacks the task 'first this'"]),
    "no tasks": (lambda root: (root / "meta/tasks.parquet").unlink(), ["tasks.parquet is missing"]),
    "a task that is not known": (
        lambda root: replace_column(root / "meta/tasks.parquet", "task", ["a", "b", "c"]),
        ["tasks.parquet lacks the task"],
    ),
    "no data": (lambda root: (root / DATA).unlink(), [f"lacks 1 of its files, such as {DATA}"]),
    "data that is cut off": (lambda root: truncate(root / DATA), [DATA, "truncated"]),
    "data that is empty": (lambda root: (root / DATA).write_bytes(b""), [DATA, "not a Parquet file"]),
    "fewer rows": (lambda root: rewrite(root / DATA, lambda table: table.slice(0, 39)), [DATA, "39 rows", "have 40"]),
    "no actions": (
        lambda root: rewrite(root / DATA, lambda table: table.drop_columns([ACTION])),
        [DATA, "lacks the column 'action'"],
    ),
    "a state of another width": (
        lambda root: replace_column(root / DATA, STATE, [[0.0] * 6] * 40),
        [DATA, f"'{STATE}'", "says 8 numbers per row"],
    ),
    "a state of text": (
        lambda root: replace_column(root / DATA, STATE, ["x"] * 40),
        [DATA, f"'{STATE}' is of type string"],
    ),
    "a state with gaps": (
        lambda root: replace_column(root / DATA, STATE, [None, *[[0.0] * 8] * 39]),
        [DATA, f"'{STATE}'", "no nulls"],
    ),
    "a value that is no number": (break_values, [DATA, "'action'", "not finite", "row 12"]),
    "rows of another order": (
        lambda root: rewrite(root / DATA, lambda table: table.take([1, 0, *range(2, 40)])),
        [DATA, "'frame_index' of row 0 is 1", "episode 0"],
    ),
    "rows of another task": (other_task, [DATA, "'task_index' of row 39 is 0", "episode 3"]),
    "no video": (lambda root: (root / FILM).unlink(), [f"lacks 1 of its files, such as {FILM}"]),
    "a video that is cut off": (lambda root: truncate(root / FILM), [FILM, "truncated"]),
    "a video that is none": (lambda root: (root / FILM).write_text("film" * 100), [FILM, "not an MP4 file"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_file_before_training_begins(fault: str, tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    make, words = FAULTS[fault]
    make(root)

    with pytest.raises(InputError) as error:
        dataset, _ = open_configured(DataConfig(path=str(root)))
        dataset.episode(0).actions  # noqa: B018
    for word in words:
        assert word in str(error.value), error.value


OLD_FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a line that is nested without end": (
        lambda root: (root / "meta/episodes.jsonl").write_text('{"tasks": ' + "[" * 100_000),
        ["episodes.jsonl", "lines of JSON"],
    ),
    "a line that is cut off": (
        lambda root: truncate(root / "meta/episodes.jsonl"),
        ["episodes.jsonl", "lines of JSON"],
    ),
    "no tasks": (lambda root: (root / "meta/tasks.jsonl").unlink(), ["tasks.jsonl is missing"]),
    "lines without lengths": (
        lambda root: (root / "meta/episodes.jsonl").write_text('{"episode_index": 0, "tasks": ["x"]}\n'),
        ["episodes.jsonl lacks the column 'length'"],
    ),
    "an episode twice": (
        lambda root: (root / "meta/episodes.jsonl").write_text(
            '{"episode_index": 0, "tasks": ["x"], "length": 1}\n' * 2
        ),
        ["episodes must have distinct numbers"],
    ),
    "no data": (
        lambda root: (root / "data/chunk-000/episode_000002.parquet").unlink(),
        ["lacks 1 of its files, such as data/chunk-000/episode_000002.parquet"],
    ),
    "two videos that are cut off": (
        lambda root: [truncate(path) for path in sorted((root / "videos/chunk-000" / FRONT).iterdir())[1:3]],
        [f"videos/chunk-000/{FRONT}/episode_000001.mp4", "episode_000002.mp4", "of its 12 files"],
    ),
}


@pytest.mark.parametrize("fault", OLD_FAULTS)
def test_a_fault_of_an_older_version_is_named_too(fault: str, tmp_path: Path) -> None:
    root = as_version_2(FIXTURES / VIDEO, tmp_path / "set")
    make, words = OLD_FAULTS[fault]
    make(root)

    with pytest.raises(InputError) as error:
        dataset, _ = open_configured(DataConfig(path=str(root)))
        dataset.episode(0).actions  # noqa: B018
    for word in words:
        assert word in str(error.value), error.value


def test_images_of_another_size_than_said_are_an_error(tmp_path: Path) -> None:
    for name in (VIDEO, IMAGE):
        root = copy_fixture(name, tmp_path / name)
        edit_feature(root, FRONT, shape=[48, 64, 3])

        with pytest.raises(InputError, match=rf"'{FRONT}' are 64 x 64 .*info\.json says 48 x 64"):
            open_configured(DataConfig(path=str(root)))


def test_a_cache_that_cannot_be_written_to_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ATLAS_CACHE_DIR", str(tmp_path / "file"))

    for name in (VIDEO, IMAGE):
        with pytest.raises(InputError, match="ATLAS_CACHE_DIR"):
            open_configured(DataConfig(path=str(FIXTURES / name)))


def test_frames_at_other_times_than_said_are_an_error(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    times = np.array(pq.read_table(root / DATA).column("timestamp").to_pylist(), np.float32)
    replace_column(root / DATA, "timestamp", times * 10 / 12)  # as if it had 12 frames a second

    with pytest.raises(InputError, match=r"file-000\.mp4 has no frame at 1\.0667 s.*shifted by 33"):
        open_dataset(root).episode(1).images("agentview", [2])


def test_a_damaged_image_is_named_with_its_row(tmp_path: Path) -> None:
    root = copy_fixture(IMAGE, tmp_path / "set")
    images = pq.read_table(root / DATA).column(FRONT).to_pylist()
    images[8]["bytes"] = images[8]["bytes"][:2000]
    images[9]["bytes"] = None
    replace_column(root / DATA, FRONT, images)
    episode = open_dataset(root).episode(1)  # rows 7 to 11

    assert episode.images("agentview", [0, 3]).shape == (2, 64, 64, 3)
    with pytest.raises(InputError, match=rf"file-000\.parquet: the image '{FRONT}' in row 8 is damaged"):
        episode.images("agentview", [1])
    with pytest.raises(InputError, match=rf"file-000\.parquet: '{FRONT}' has no image in row 9"):
        episode.images("agentview", [2])


# Training

SMALL = [
    "model.fusion={dim: 32, layers: 1}",
    "model.language={dim: 16, layers: 1}",
    "model.vision={name: keypoints, width: 8, keypoints: 8}",
    "data.batch_size=4",
    "data.action_horizon=4",  # the fixtures' episodes are short
    "training.max_steps=2",
    "logging.system_interval_seconds=0",
    *(
        f"logging.media.{name}.interval=0"
        for name in ("gradient_logger", "plot_logger", "action_logger", "vis_dataset")
    ),
    "distributed.cpu=true",
]


@pytest.mark.parametrize(("name", "version"), [(VIDEO, "v3.0"), (IMAGE, "v3.0"), (VIDEO, "v2.1"), (IMAGE, "v2.0")])
def test_two_steps_of_training_need_no_other_key_than_the_path(name: str, version: str, tmp_path: Path) -> None:
    path = FIXTURES / name if version == "v3.0" else as_version_2(FIXTURES / name, tmp_path / "old", version)

    result = atlas.train(None, [*SMALL, f"data.path={path}", f"output_dir={tmp_path / 'out'}"])

    processor = json.loads((result.run_dir / "checkpoints/latest/policy/processor.json").read_text())
    assert processor["cameras"] == ["agentview", "eye_in_hand"]
    assert ActionSpec.from_dict(processor["action_spec"]) == ActionSpec()


def test_a_change_behind_a_linked_folder_is_seen(tmp_path: Path) -> None:
    root = copy_fixture(IMAGE, tmp_path / "set")
    elsewhere = (root / "meta/episodes").rename(tmp_path / "episodes")
    (root / "meta/episodes").symlink_to(elsewhere)
    before = open_dataset(root).fingerprint()

    (file,) = elsewhere.rglob("*.parquet")
    os.utime(file, (0, 0))

    assert open_dataset(root).fingerprint() != before
