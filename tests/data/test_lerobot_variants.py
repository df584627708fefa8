"""LeRobot datasets as other libraries and other people's robots leave them: read correctly, or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atlas.checks.context import CheckContext
from atlas.checks.video_check import check_video
from atlas.config import DataConfig, load_config
from atlas.data.convert import Conversion, convert
from atlas.data.formats import open_configured, open_dataset
from atlas.data.lerobot.dataset import LeRobotDataset
from atlas.data.lerobot.features import _LIBERO_DIGESTS, is_libero_task, libero_digest
from atlas.data.lerobot.tables import parquet_table
from atlas.data.origin import mend
from atlas.data.training_data import open_training_data
from atlas.environments.libero_package import ALL_SUITES, tasks_of
from atlas.errors import InputError
from tests.data.lerobot_folders import (
    FIXTURES,
    IMAGE,
    VIDEO,
    VIDEO_V2,
    as_version_2,
    copy_fixture,
    edit_feature,
    edit_info,
    rename_feature,
    replace_column,
    truncate,
)

EPISODES, TASKS = "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"
DATA = "data/chunk-000/file-000.parquet"
STATE, ACTION, FRONT, WRIST = "observation.state", "action", "observation.images.image", "observation.images.image2"


def lerobot(path: Path, **settings: Any) -> LeRobotDataset:
    dataset, _ = open_configured(DataConfig(path=str(path), **settings))
    assert isinstance(dataset, LeRobotDataset)
    return dataset


def check_same(dataset: LeRobotDataset, truth: LeRobotDataset, episodes: list[int], cameras: list[str]) -> None:
    """The dataset's episodes are these ones of the truth."""
    assert len(dataset) == len(episodes)
    for number, of in enumerate(episodes):
        mine, its = dataset.episode(number), truth.episode(of)
        assert mine.instruction == its.instruction
        np.testing.assert_array_equal(mine.actions, its.actions)
        np.testing.assert_array_equal(mine.proprio, its.proprio)
        for camera in cameras:
            np.testing.assert_array_equal(mine.images(camera, [1]), its.images(camera, [1]))


# Names of LIBERO's


def openpis_template(tmp_path: Path) -> Path:
    """A dataset whose features have the names used by the script that converted LIBERO for openpi."""
    root = copy_fixture(IMAGE, tmp_path / "set")
    names = {FRONT: "image", "observation.images.wrist_image": "wrist_image", STATE: "state", ACTION: "actions"}
    for old, new in names.items():
        rename_feature(root, old, new)
    return root


def other_tasks(root: Path) -> None:
    texts = ["pick up the screw", "put down the screw"]
    replace_column(root / TASKS, "task", texts)
    old = pq.read_table(root / EPISODES).column("tasks").to_pylist()
    known = {text: texts[i] for i, text in enumerate(sorted({tasks[0] for tasks in old}))}
    replace_column(root / EPISODES, "tasks", [[known[tasks[0]]] for tasks in old])
    numbers = [texts.index(known[tasks[0]]) for tasks in old]
    lengths = pq.read_table(root / EPISODES).column("length").to_pylist()
    replace_column(root / DATA, "task_index", np.repeat(numbers, lengths))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda root: edit_info(root, robot_type="ur5"), "its robot_type is 'ur5'"),
        (lambda root: edit_info(root, fps=15), "its fps is 15"),
        (other_tasks, "screw' is not one of LIBERO's tasks"),
    ],
)
def test_another_robot_whose_features_are_called_as_liberos_is_not_taken_for_libero(
    change: Callable[[Path], None], why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = openpis_template(tmp_path)
    assert open_dataset(root).cameras == ["agentview", "eye_in_hand"] and not caplog.text
    change(root)

    dataset = open_dataset(root)

    assert isinstance(dataset, LeRobotDataset) and dataset.cameras == ["image", "wrist_image"]
    assert dataset.orientation == "upright" and dataset.action_spec.control_hz == dataset.fps
    assert why in caplog.text and "actions are taken for LIBERO's" in caplog.text and "stored upright" in caplog.text


def test_the_instructions_of_the_benchmark_are_known() -> None:
    try:
        tasks = tasks_of(ALL_SUITES)
    except InputError as error:
        pytest.skip(f"LIBERO's package is not installed: {error}")

    assert {libero_digest(text) for text in tasks} == _LIBERO_DIGESTS
    assert is_libero_task("Open_the_microwave.") and not is_libero_task("open the cupboard")


# Features that are not used


def test_a_depth_map_of_three_channels_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for key, says in (("info", {"is_depth_map": True}), ("video_info", {"video.is_depth_map": True})):
        root = copy_fixture(VIDEO, tmp_path / key)
        edit_feature(root, WRIST, **{key: says})

        assert lerobot(root).cameras == ["image"]
        assert f"depth images are left out: {WRIST}" in caplog.text
        caplog.clear()


def test_a_dataset_without_cameras_is_for_policies_that_do_not_look(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, features={name: each for name, each in features.items() if each["dtype"] != "video"})

    assert lerobot(root).cameras == []
    with pytest.raises(InputError, match=r"The dataset has no cameras.*model\.vision\.name=none"):
        open_training_data(load_config(None, [f"data.path={root}"]))
    blind = load_config(
        None, [f"data.path={root}", "model.vision={name: none}", "evaluation.execute=1", "data.action_horizon=2"]
    )
    assert open_training_data(blind).cameras == []


@pytest.mark.parametrize("careful", [False, True])
def test_features_that_nobody_uses_may_be_empty(careful: bool, tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features |= {"points": {"dtype": "float32", "shape": [0, 3], "names": None}}
    features |= {"none": {"dtype": "video", "shape": [0, 0, 3], "names": None}, "text": {"dtype": "string"}}
    edit_info(root, features=features)

    check_same(lerobot(root, skip_damaged=careful), lerobot(FIXTURES / VIDEO), [0, 1, 2, 3], ["agentview"])


def without_places(root: Path, episodes: list[int], key: str = WRIST) -> None:
    """Some episodes have no video of a camera: their places are null, which pandas writes as floats."""
    table = pq.read_table(root / EPISODES)
    for part in ("chunk_index", "file_index", "from_timestamp"):
        values = table.column(f"videos/{key}/{part}").to_pylist()
        values = [None if i in episodes else float(value) for i, value in enumerate(values)]
        column = pa.array(values, pa.float64())
        table = table.set_column(table.column_names.index(f"videos/{key}/{part}"), f"videos/{key}/{part}", column)
    pq.write_table(table, root / EPISODES)


@pytest.mark.parametrize("careful", [False, True])
def test_videos_without_a_place_matter_where_they_are_used(
    careful: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, truth = copy_fixture(VIDEO, tmp_path / "set"), lerobot(FIXTURES / VIDEO)
    without_places(root, [2])

    check_same(lerobot(root, skip_damaged=careful, cameras=["agentview"]), truth, [0, 1, 2, 3], ["agentview"])
    if careful:
        check_same(lerobot(root, skip_damaged=True), truth, [0, 1, 3], truth.cameras)
        assert "Left out: episode 2 of" in caplog.text and WRIST in caplog.text
    else:
        with pytest.raises(InputError, match=rf"where 1 of 4 episodes are in the videos of '{WRIST}'.*episode 2"):
            lerobot(root)
    without_places(root, [0, 1, 2, 3])
    check_same(lerobot(root, skip_damaged=careful, cameras=["agentview"]), truth, [0, 1, 2, 3], ["agentview"])


# Types of columns


def retyped(path: Path, types: dict[str, pa.DataType]) -> None:
    """Write columns of a Parquet file in other types."""
    table = pq.read_table(path)
    for key, kind in types.items():
        place = table.column_names.index(key)
        table = table.set_column(place, key, pa.chunked_array([pa.array(table.column(key).to_pylist(), kind)]))
    pq.write_table(table.replace_schema_metadata(None), path)


INTEGERS = ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
INTEGERS += [f"videos/{FRONT}/chunk_index", f"videos/{FRONT}/file_index"]
DICTIONARY = pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize("text", [pa.large_string(), pa.string_view(), DICTIONARY], ids=["large", "view", "dictionary"])
def test_metadata_is_read_in_the_types_of_every_library(text: pa.DataType, tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    retyped(root / TASKS, {"task": text, "task_index": pa.float64()})
    retyped(root / EPISODES, {"tasks": pa.large_list(text), **dict.fromkeys(INTEGERS, pa.float64())})
    numbers = {key: pa.float64() for key in ("episode_index", "frame_index", "task_index")}
    retyped(root / DATA, {ACTION: pa.large_list(pa.float64()), STATE: pa.list_(pa.float32()), **numbers})

    check_same(lerobot(root), lerobot(FIXTURES / VIDEO), [0, 1, 2, 3], ["agentview", "eye_in_hand"])


def test_numbers_of_metadata_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    replace_column(root / EPISODES, "data/file_index", [0.0, 0.5, 0.0, 0.0])

    with pytest.raises(InputError, match=r"file-000\.parquet: 'data/file_index' holds numbers that are not integers"):
        lerobot(root)


def test_images_are_read_in_the_types_of_every_library(tmp_path: Path) -> None:
    root = copy_fixture(IMAGE, tmp_path / "set")
    retyped(root / DATA, {FRONT: pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})})

    check_same(lerobot(root), lerobot(FIXTURES / IMAGE), [0, 1, 2], ["agentview", "eye_in_hand"])


def test_an_episode_that_is_marked_valid_has_one_instruction(tmp_path: Path) -> None:
    """As in GR00T's datasets: the mark is a separate task, and the rows have the instruction's number. One marked
    as invalid is refused as such."""
    root = as_version_2(FIXTURES / VIDEO, tmp_path / "set")
    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    (root / "meta/episodes.jsonl").write_text(
        "".join(json.dumps(line | {"tasks": [*line["tasks"], "valid"]}) + "\n" for line in lines)
    )
    with open(root / "meta/tasks.jsonl", "a") as file:
        file.write(json.dumps({"task_index": 9, "task": "valid"}) + "\n")

    dataset = open_dataset(root)

    assert dataset.tasks == lerobot(FIXTURES / VIDEO).tasks
    assert [dataset.episode(i).actions.shape[1] for i in range(4)] == [7] * 4
    marked = (root / "meta/episodes.jsonl").read_text().replace('"valid"', '"invalid"', 1)
    (root / "meta/episodes.jsonl").write_text(marked)
    with pytest.raises(InputError, match="the episode in row 0 is marked 'invalid'"):
        open_dataset(root)


# Takes that were discarded


def twice(path: Path, rows: slice = slice(None)) -> None:
    """Another take before the rows, as an interrupted recorder leaves it: with the same numbering, but other values."""
    table = pq.read_table(path)
    first, count = rows.start or 0, len(range(*rows.indices(table.num_rows)))
    discarded = table.slice(first, count)
    action = pa.array([[0.5] * 7] * count, table.schema.field(ACTION).type)
    discarded = discarded.set_column(table.column_names.index(ACTION), ACTION, action)
    pq.write_table(pa.concat_tables([table.slice(0, first), discarded, table.slice(first)]), path)


@pytest.mark.parametrize("damaged", [False, True])
def test_of_two_takes_in_a_file_neither_is_trained_on(
    damaged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, truth = as_version_2(FIXTURES / VIDEO, tmp_path / "set"), lerobot(FIXTURES / VIDEO)
    twice(root / "data/chunk-000/episode_000002.parquet")
    if damaged:
        truncate(root / VIDEO_V2.format(episode_chunk=0, video_key=FRONT, episode_index=0))

    if not damaged:
        with pytest.raises(InputError, match=r"episode_000002\.parquet has 12 rows.* have 6") as error:
            lerobot(root).episode(0).actions  # noqa: B018
        assert "ownload" not in str(error.value)  # nobody can download what they recorded
    dataset = lerobot(root, skip_damaged=True)

    check_same(dataset, truth, [1, 3] if damaged else [0, 1, 3], [])
    assert "Left out: episode 2 of" in caplog.text


def test_two_takes_in_a_file_of_several_episodes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, truth = copy_fixture(VIDEO, tmp_path / "set"), lerobot(FIXTURES / VIDEO)
    twice(root / DATA, slice(29, 40))  # of the last of the four

    check_same(lerobot(root, skip_damaged=True), truth, [0, 1, 2], ["agentview"])
    assert "has 22 rows of episode 3" in caplog.text


def test_rows_of_no_episode_are_said_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, truth = copy_fixture(VIDEO, tmp_path / "set"), lerobot(FIXTURES / VIDEO)
    table = pq.read_table(root / DATA)
    more = table.slice(29).set_column(table.column_names.index("episode_index"), "episode_index", pa.array([4] * 11))
    pq.write_table(pa.concat_tables([table, more]), root / DATA)

    with pytest.raises(InputError, match="51 rows"):
        lerobot(root).episode(0).actions  # noqa: B018
    check_same(lerobot(root, skip_damaged=True), truth, [0, 1, 2, 3], ["agentview"])
    assert "Left out: 11 rows of" in caplog.text


def test_only_what_came_from_the_hub_is_to_be_fetched_again(tmp_path: Path) -> None:
    cached = tmp_path / "datasets--a--b" / "snapshots" / "1234" / "data" / "x.parquet"
    (tmp_path / "datasets--a--b" / "blobs").mkdir(parents=True)
    downloaded = tmp_path / "copy" / "data" / "x.parquet"
    (tmp_path / "copy" / ".cache" / "huggingface" / "download").mkdir(parents=True)

    assert "Download" in mend(cached) and "Download" in mend(downloaded)
    assert "ownload" not in mend(tmp_path / "own" / "data" / "x.parquet")


def test_logs_say_nothing_of_sets_that_are_as_they_should_be(caplog: pytest.LogCaptureFixture) -> None:
    for name in (VIDEO, IMAGE):
        lerobot(FIXTURES / name).episode(0).actions  # noqa: B018

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# Times of joined videos


def drifting(root: Path, seconds: float) -> Path:
    """According to the metadata, episodes begin later than they do in the videos, by more from one to the next."""
    table = pq.read_table(root / EPISODES)
    for key in (FRONT, WRIST):
        name = f"videos/{key}/from_timestamp"
        starts = np.array(table.column(name).to_pylist()) + seconds * np.arange(table.num_rows)
        table = table.set_column(table.column_names.index(name), name, pa.array(starts))
    pq.write_table(table, root / EPISODES)
    return root


@pytest.mark.parametrize("drift", [0.0003, -0.0003, 0.006])
def test_times_that_drift_from_episode_to_episode_give_the_same_frames(drift: float, tmp_path: Path) -> None:
    root = drifting(copy_fixture(VIDEO, tmp_path / "set"), drift)

    check_same(lerobot(root), lerobot(FIXTURES / VIDEO), [0, 1, 2, 3], ["agentview", "eye_in_hand"])
    assert not [f for f in check_video(context(root)) if f.severity == "error"]


def test_times_that_are_too_far_off_are_told_from_frames_that_are_missing(tmp_path: Path) -> None:
    root = drifting(copy_fixture(VIDEO, tmp_path / "set"), 0.015)
    with pytest.raises(InputError, match=r"file-000\.mp4 has no frame at .* shifted by 45\.0 ms"):
        lerobot(root)
    assert [f for f in check_video(context(root)) if "shifted by up to 45.0 ms" in f.message]

    drifting(root, 0.085)  # the last episode by three frames: each of its times has a frame, and it is another one
    assert [f for f in check_video(context(root)) if "shifted by up to 300.0 ms" in f.message]


def context(root: Path) -> CheckContext:
    dataset = open_dataset(root)
    return CheckContext(dataset, list(dataset.cameras), np.arange(4), np.arange(0))


# What a damaged file may claim


@pytest.mark.parametrize(
    ("key", "shape", "said"), [(STATE, [2**31], "float32 of shape"), (FRONT, [2**31, 2**31, 3], "is a video of shape")]
)
def test_sizes_beyond_reason_are_refused_before_room_is_taken(
    key: str, shape: list[int], said: str, tmp_path: Path
) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    edit_feature(root, key, shape=shape)

    with pytest.raises(InputError, match=said):
        lerobot(root, features={"cameras": {"front": FRONT}, "proprio": STATE}).episode(0).actions  # noqa: B018


def test_a_file_that_claims_more_rows_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    values = pa.chunked_array([pa.array([0] * 10_000_000, pa.int8())])
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"episode_index": values}), path)

    with pytest.raises(InputError, match="bytes, but claims to hold 10000000 rows"):
        parquet_table(path, ["episode_index"])


def test_what_atlas_noted_of_a_dataset_may_be_damaged_too(tmp_path: Path) -> None:
    root = tmp_path / "set"
    convert(open_dataset(FIXTURES / VIDEO), root, Conversion("lerobot", "png"), workers=1)
    about = json.loads((root / "meta/atlas/dataset.json").read_text())
    (root / "meta/atlas/dataset.json").write_text(json.dumps(about | {"action_spec": {"position": [0, 99]}}))

    with pytest.raises(InputError, match=r"dataset\.json"):
        open_dataset(root)
    (root / "meta/atlas/dataset.json").write_text(json.dumps(about))
    for column, value in (("model", 7), ("init_state", ["x"])):
        replace_column(root / "meta/atlas/episodes.parquet", column, [value] * 4)
        with pytest.raises(InputError, match=r"meta/atlas: episode 0 cannot be used"):
            open_dataset(root).episode(0).model_xml  # noqa: B018


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"{}"])
def test_what_a_power_cut_left_in_the_cache_is_made_again(content: bytes, own_cache: Path, tmp_path: Path) -> None:
    root, truth = as_version_2(FIXTURES / VIDEO, tmp_path / "set"), lerobot(FIXTURES / VIDEO)
    truncate(root / VIDEO_V2.format(episode_chunk=0, video_key=FRONT, episode_index=0))
    check_same(lerobot(root, skip_damaged=True), truth, [1, 2, 3], ["agentview"])
    for path in own_cache.rglob("*"):
        if path.is_file():
            path.unlink()  # whoever has it mapped into memory keeps it
            path.write_bytes(content)

    check_same(lerobot(root, skip_damaged=True), truth, [1, 2, 3], ["agentview"])
