"""Episodes whose instruction changes, or is missing: LeRobot numbers the task, and the sub-task, of each frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atlas.checks.inspection import inspect_dataset
from atlas.config import load_config
from atlas.config.data_sections import FeaturesConfig
from atlas.data.convert import Conversion, convert
from atlas.data.episode import frame_instructions, frame_tasks
from atlas.data.formats import open_configured, open_dataset
from atlas.data.inputs import summarise_inputs
from atlas.data.sampling.chunks import ChunkDataset
from atlas.errors import InputError
from tests.data.lerobot_folders import as_version_2, edit_info, replace_column
from tests.robots import ROBOTS, write_robot

TASKS = ["open the drawer", "close the drawer"]
CHANGE = 10  # the frame of the first episode at which its instruction changes


@pytest.fixture
def robot(make_once, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    import shutil

    made = make_once("robot_so100", lambda folder: write_robot(folder, ROBOTS["so100"]))
    return Path(shutil.copytree(made, tmp_path / "set"))


def rows_of(root: Path) -> Path:
    (path,) = (root / "data").rglob("*.parquet")
    return path


def set_tasks(root: Path, lists: list[list[str]], numbers: np.ndarray) -> Path:
    """The tasks that the metadata says of each episode, and the number of each frame."""
    replace_column(root / "meta/episodes/chunk-000/file-000.parquet", "tasks", lists)
    replace_column(rows_of(root), "task_index", numbers)
    return root


def changing(root: Path) -> Path:
    """The first episode changes its instruction, in the order in which the metadata does not say it."""
    rows = pq.read_table(rows_of(root))
    numbers = rows.column("task_index").to_numpy().copy()
    episode = rows.column("episode_index").to_numpy()
    numbers[(episode == 0) & (rows.column("frame_index").to_numpy() >= CHANGE)] = 1
    lists = [[TASKS[i % 2]] for i in range(5)]
    lists[0] = TASKS[::-1]
    return set_tasks(root, lists, numbers)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_each_frame_has_its_instruction(version: str, robot: Path, tmp_path: Path) -> None:
    root = changing(robot)
    if version == "v2.1":
        stats = (root / "meta" / "stats.json").read_text()
        root = as_version_2(root, tmp_path / "old")
        whole = {"episode_index": 0, "stats": json.loads(stats)}
        (root / "meta" / "episodes_stats.jsonl").write_text(json.dumps(whole) + "\n")

    dataset = open_dataset(root)
    chunks = ChunkDataset(dataset, np.arange(5), ["front"], image_size=32, horizon=4)

    length = int(dataset.lengths[0])
    assert frame_instructions(dataset, 0) == [TASKS[0]] * CHANGE + [TASKS[1]] * (length - CHANGE)
    assert frame_tasks(dataset, 1) is None and frame_instructions(dataset, 1) == [TASKS[1]] * int(dataset.lengths[1])
    assert dataset.episode(0).instruction == TASKS[0]
    batch = chunks.__getitems__([(0, CHANGE - 1), (0, CHANGE)])
    assert batch.instruction == TASKS
    assert inspect_dataset(dataset)["tasks"] == {TASKS[0]: 3, TASKS[1]: 3}
    inputs = summarise_inputs(dataset, np.array([0]), ["front"], 32)
    assert inputs.instructions == tuple(TASKS)


def test_a_chunk_ends_where_the_instruction_changes_unless_told_otherwise(robot: Path) -> None:
    dataset = open_dataset(changing(robot))
    ends, goes_on = (
        ChunkDataset(dataset, np.array([0, 1]), ["front"], image_size=32, horizon=4, cross_tasks=cross)
        for cross in (False, True)
    )

    ended, went_on = (each.__getitems__([(0, CHANGE - 2), (0, CHANGE)]) for each in (ends, goes_on))

    assert ended.action_is_pad.tolist() == [[False, False, True, True], [False] * 4]
    assert (ended.actions[0, 2] == ended.actions[0, 1]).all()
    assert not went_on.action_is_pad.any()
    assert (ends.valid_steps[: CHANGE + 1] == [4] * (CHANGE - 3) + [3, 2, 1, 4]).all()


def test_a_mixture_keeps_the_instructions_of_frames(robot: Path, tmp_path: Path) -> None:
    sources = [{"path": str(changing(robot)), "name": "a"}, {"path": str(robot), "name": "b"}]

    mixture, _ = open_configured(load_config({"data": {"datasets": sources}}).data)

    assert frame_instructions(mixture, 5) == frame_instructions(mixture, 0)
    assert set(frame_instructions(mixture, 5)) == set(TASKS)


def test_a_copy_has_the_same_instructions(robot: Path, tmp_path: Path) -> None:
    dataset = open_dataset(changing(robot))

    convert(dataset, tmp_path / "copy", Conversion("lerobot", "png"), workers=1)

    copy = open_dataset(tmp_path / "copy")
    assert [frame_instructions(copy, i) for i in range(5)] == [frame_instructions(dataset, i) for i in range(5)]


def test_a_frame_with_a_task_that_its_episode_does_not_have_is_refused(robot: Path) -> None:
    root = changing(robot)
    replace_column(root / "meta/episodes/chunk-000/file-000.parquet", "tasks", [[TASKS[i % 2]] for i in range(5)])

    with pytest.raises(InputError, match=f"'task_index' of row {CHANGE} is 1, which disagrees"):
        _ = open_dataset(root).numbers()


def with_column(root: Path, key: str, values: pa.Array, dtype: str) -> None:
    path = rows_of(root)
    pq.write_table(pq.read_table(path).append_column(key, values), path)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, features=features | {key: {"dtype": dtype, "shape": [1], "names": None}})


def numbered_subtasks(root: Path, index: str) -> None:
    """As LeRobot 0.4.4 and 0.5 have them: a table of pandas with the texts as its index, which has a name or none."""
    frame = pq.read_table(rows_of(root)).column("frame_index").to_numpy()
    numbers = np.where(frame < 3, -1, np.where(frame < CHANGE, 0, 1))
    with_column(root, "subtask_index", pa.array(numbers), "int64")
    columns = {"subtask_index": [0, 1], "who": ["a person", "a model"], index: ["reach", "pull"]}
    pq.write_table(pa.table(columns), root / "meta" / "subtasks.parquet")


def said_subtasks(root: Path) -> None:
    """As later versions have them: each frame has all that is said of its episode, with the times from which it
    holds."""
    table = pq.read_table(rows_of(root))
    times = table.column("timestamp").to_numpy()
    rows = [
        ("user", "open it, please", "task_aug", 0.0),
        ("assistant", "pull", "subtask", float(times[CHANGE])),
        ("assistant", "reach", "subtask", float(times[3])),
        ("assistant", "first reach, then pull", "plan", 0.0),
    ]
    keys = ("role", "content", "style", "timestamp", "camera", "tool_calls")
    said = [dict(zip(keys, (*row, None, None), strict=True)) for row in rows]
    texts = [pa.field(key, pa.string()) for key in ("role", "content", "style")]
    more = [pa.field("camera", pa.string()), pa.field("tool_calls", pa.list_(pa.string()))]
    kind = pa.list_(pa.struct([*texts, pa.field("timestamp", pa.float32()), *more]))
    with_column(root, "language_persistent", pa.array([said] * len(table), kind), "language")


SUBTASKS = {
    "numbered": lambda root: numbered_subtasks(root, "subtask"),
    "numbered without a name": lambda root: numbered_subtasks(root, "__index_level_0__"),
    "said": said_subtasks,
}


@pytest.mark.parametrize("way", SUBTASKS)
def test_sub_tasks_are_instructions_where_they_are_asked_for(way: str, robot: Path) -> None:
    SUBTASKS[way](robot)
    root = robot

    dataset = open_dataset(root, features=FeaturesConfig(instruction="subtask"))

    length = int(dataset.lengths[1])
    assert frame_instructions(dataset, 1) == [TASKS[1]] * 3 + ["reach"] * (CHANGE - 3) + ["pull"] * (length - CHANGE)
    assert frame_instructions(open_dataset(root), 1) == [TASKS[1]] * length
    assert dataset.fingerprint() != open_dataset(root).fingerprint()


def test_sub_tasks_that_are_not_there_are_refused(robot: Path) -> None:
    with pytest.raises(InputError, match="has no feature 'subtask_index'"):
        open_dataset(robot, features=FeaturesConfig(instruction="subtask"))


def test_episodes_without_instruction_are_given_one(robot: Path) -> None:
    lists = [[TASKS[i % 2]] for i in range(5)]
    lists[2] = []
    root = set_tasks(robot, lists, pq.read_table(rows_of(robot)).column("task_index").to_numpy())

    with pytest.raises(InputError, match=r"1 episodes have no instruction, such as episode 2.*data.instruction="):
        open_dataset(root)
    dataset = open_dataset(root, instruction="tidy up")

    assert [dataset.episode(i).instruction for i in range(5)] == [*TASKS, "tidy up", TASKS[1], TASKS[0]]
    assert len(dataset.numbers().actions) == int(dataset.lengths.sum())
    with pytest.raises(InputError, match="has its own instructions"):
        open_dataset(write_robot(robot.parent / "whole", ROBOTS["koch_old"]), instruction="tidy up")
