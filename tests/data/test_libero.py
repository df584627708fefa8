"""Reading LIBERO's HDF5 layout."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from atlas.checks.inspection import dataset_warnings
from atlas.data.episode import RecordedEpisode
from atlas.data.formats import open_dataset
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.data.sampling.chunks import ChunkDataset
from atlas.errors import InputError
from tests.conftest import MakeLibero, made_up_episode
from tests.data.hdf5_files import store_late


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    written = made_up_episode(np.random.default_rng(0), "push the plate", 7)
    write_libero_file(tmp_path / "push_demo.hdf5", "push the plate", [written], {"env_name": "elsewhere"})

    dataset = open_dataset(tmp_path / "push_demo.hdf5")
    episode = dataset.episode(0)

    assert (len(dataset), dataset.tasks, dataset.cameras) == (1, ["push the plate"], ["agentview", "eye_in_hand"])
    assert len(episode) == 7 and episode.instruction == "push the plate" and episode.success is True
    np.testing.assert_array_equal(episode.actions, written.actions.astype(np.float32))
    np.testing.assert_allclose(episode.proprio, written.proprio, atol=1e-6)
    np.testing.assert_array_equal(episode.images("eye_in_hand", [5, 0]), written.images["eye_in_hand"][[5, 0]])
    np.testing.assert_array_equal(episode.init_state, written.sim_states[0])
    assert dataset.image_size("agentview") == (32, 32)


def test_images_are_stored_upside_down_and_read_upright(make_libero: MakeLibero) -> None:
    root = make_libero()
    with h5py.File(root / "task_0_demo.hdf5") as file:
        stored = file["data/demo_2/obs/agentview_rgb"][4]

    upright = open_dataset(root).episode(2).images("agentview", [4])[0]
    as_it_is = open_dataset(root, orientation="upright").episode(2).images("agentview", [4])[0]

    assert tuple(stored[-1, 0]) == (2, 4, 0) and tuple(upright[0, 0]) == (2, 4, 0)
    np.testing.assert_array_equal(as_it_is, stored)


def test_episodes_come_by_file_and_then_by_number_not_by_text(make_libero: MakeLibero) -> None:
    dataset = open_dataset(make_libero({"a task": [5 + i for i in range(12)]}))

    assert dataset.lengths.tolist() == [5 + i for i in range(12)]


def test_a_folder_of_suites_is_read_whole(make_libero: MakeLibero, tmp_path: Path) -> None:
    make_libero({"one": [5, 5]}, folder="suites/first")
    make_libero({"two": [6]}, folder="suites/second")

    dataset = open_dataset(tmp_path / "suites")

    assert dataset.tasks == ["one", "two"] and dataset.task_of.tolist() == [0, 0, 1]


def test_linked_files_and_folders_are_read_once_each(make_libero: MakeLibero, tmp_path: Path) -> None:
    root = make_libero({"one": [5, 5]}, folder="suites/first").parent
    elsewhere = make_libero({"two": [6]}, folder="elsewhere")
    (root / "second").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(root)
    (root / "third").symlink_to(root / "first", target_is_directory=True)
    (root / "first/again.hdf5").symlink_to(elsewhere / "task_0_demo.hdf5")
    (root / ".hidden").symlink_to(make_libero({"three": [7]}, folder="hidden"))

    dataset = open_dataset(root)

    assert sorted(dataset.lengths.tolist()) == [5, 5, 6] and sorted(dataset.tasks) == ["one", "two"]


def rename_demos(root: Path, names: list[str]) -> None:
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        for number in range(len(names)):
            file["data"].move(f"demo_{number}", f"_{number}")
        for number, name in enumerate(names):
            file["data"].move(f"_{number}", name)


@pytest.mark.parametrize(
    "names",
    [
        ["demo_0_1", "demo_0_2", "demo_0_10", "demo_1_0"],
        ["ep_2", "ep_3", "ep_10", "ep_11"],
        ["demo3", "demo4", "demo29", "demo30"],
        ["demo_2", "demo_11", "ep_1", "z"],
    ],
)
def test_demos_of_other_names_are_read_in_the_order_of_their_numbers(make_libero: MakeLibero, names: list[str]) -> None:
    root = make_libero({"a task": [5, 6, 7, 8]})
    rename_demos(root, names)

    assert open_dataset(root).lengths.tolist() == [5, 6, 7, 8]


def test_what_is_no_demo_is_passed_over_and_said(make_libero: MakeLibero, caplog: pytest.LogCaptureFixture) -> None:
    root = make_libero({"a task": [5, 6]})
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        file["data/notes/by"] = np.zeros(3)

    assert len(open_dataset(root)) == 2 and "passed over ['notes'] in data" in caplog.text


OPENVLAS = {
    "pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate": [5, 6, 7],
    "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it": [6, 5],
    "LIVING_ROOM_SCENE10_put_both_cups_in_the_basket": [5],
    "STUDY_SCENE1_pick_up_the_book": [],
}


def test_files_without_attributes_are_read_by_their_names(
    make_libero: MakeLibero, caplog: pytest.LogCaptureFixture
) -> None:
    """As OpenVLA makes them from LIBERO's: the instruction is the file's name, and failed demos are gone."""
    root = make_libero(OPENVLAS)
    for number, name in enumerate(OPENVLAS):
        with h5py.File(root / f"task_{number}_demo.hdf5", "a") as file:
            for group in (file["data"], *file["data"].values()):
                for attribute in list(group.attrs):
                    del group.attrs[attribute]
            if number == 0:
                del file["data/demo_1"]
        (root / f"task_{number}_demo.hdf5").rename(root / f"{name}_demo.hdf5")

    with caplog.at_level("INFO"):
        dataset = open_dataset(root)

    assert "the instruction is taken from the file's name: 'turn on the stove" in caplog.text
    assert {task: dataset.lengths[dataset.task_of == i].tolist() for i, task in enumerate(dataset.tasks)} == {
        "turn on the stove and put the moka pot on it": [6, 5],
        "put both cups in the basket": [5],
        "pick up the black bowl on the stove and place it on the plate": [5, 7],
    }
    assert "STUDY_SCENE1_pick_up_the_book_demo.hdf5 holds no episodes" in caplog.text
    chunks = ChunkDataset(dataset, np.arange(5), dataset.cameras, image_size=32, horizon=4)
    assert [each.episodes for each in chunks.statistics()] == [5]  # of the whole folder
    with pytest.raises(InputError, match="no file in it has a demo"):
        open_dataset(root / "STUDY_SCENE1_pick_up_the_book_demo.hdf5")


def test_images_of_other_sizes_are_refused_by_name(make_libero: MakeLibero, tmp_path: Path) -> None:
    root = make_libero({"one": [5, 5]}, size=32)
    (make_libero({"two": [5]}, size=48, folder="more") / "task_0_demo.hdf5").rename(root / "task_1_demo.hdf5")

    with pytest.raises(InputError, match=r"task_1_demo.hdf5: data/demo_0/obs has images of 48 x 48 .*32 x"):
        open_dataset(root)
    assert len(open_dataset(root, skip_damaged=True)) == 2


def test_numbers_beside_the_actions_that_do_not_fit_are_named_when_they_are_read(make_libero: MakeLibero) -> None:
    root = make_libero({"a task": [6]})
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        for key, values in (("rewards", np.array([b"none"] * 6)), ("states", np.zeros((4, 5)))):
            del file[f"data/demo_0/{key}"]
            file[f"data/demo_0/{key}"] = values

    episode = open_dataset(root).episode(0)

    with pytest.raises(InputError, match=r"demo_0/rewards is of type \|S4, expected numbers"):
        episode.success  # noqa: B018
    with pytest.raises(InputError, match=r"demo_0/states has shape \(4, 5\)"):
        episode.sim_states  # noqa: B018


def test_compressed_files_give_the_same_images(make_libero: MakeLibero, tmp_path: Path) -> None:
    plain = make_libero({"a task": [6]})
    packed = tmp_path / "packed.hdf5"
    with h5py.File(plain / "task_0_demo.hdf5") as source, h5py.File(packed, "w") as target:
        source.copy("data", target)
        images = target["data/demo_0/obs/agentview_rgb"][:]
        del target["data/demo_0/obs/agentview_rgb"]
        target["data/demo_0/obs"].create_dataset("agentview_rgb", data=images, compression="gzip")

    for camera in ("agentview", "eye_in_hand"):
        expected = open_dataset(plain).episode(0).images(camera, [3, 1])
        np.testing.assert_array_equal(open_dataset(packed).episode(0).images(camera, [3, 1]), expected)


def test_noops_are_dropped_when_asked(tmp_path: Path) -> None:
    episode = made_up_episode(np.random.default_rng(0), "wait", 8)
    episode.actions[[1, 2, 6], :6] = 0.0  # frame 4 is where the gripper changes
    episode.actions[4, :6] = 0.0
    write_libero_file(tmp_path / "wait_demo.hdf5", "wait", [episode], {"env_name": "elsewhere"})

    kept = open_dataset(tmp_path, drop_noops=True)

    assert kept.lengths.tolist() == [5] and open_dataset(tmp_path).lengths.tolist() == [8]
    np.testing.assert_array_equal(kept.episode(0).actions, episode.actions[[0, 3, 4, 5, 7]].astype(np.float32))
    assert kept.episode(0).images("agentview", [1])[0, 0, 0, 1] == 3  # the second kept frame is frame 3


def moving_episode(length: int) -> RecordedEpisode:
    """Its states hold the time, the robot's seven joints and four numbers more, as MuJoCo has them."""
    rng = np.random.default_rng(0)
    episode = made_up_episode(rng, "push", length)
    episode.joints = rng.normal(0, 0.02, (length, 7)).cumsum(0)
    others = rng.normal(size=(length, 4))
    episode.sim_states = np.concatenate([np.arange(length)[:, None] / 20, episode.joints, others], axis=1)
    return episode


@pytest.mark.parametrize("drop_noops", [False, True])
def test_observations_that_are_stored_after_their_action_are_given_to_the_next_one(
    tmp_path: Path, drop_noops: bool
) -> None:
    whole = moving_episode(9)
    whole.actions[[3, 4], :6] = 0.0  # frame 4 is where the gripper changes
    write_libero_file(tmp_path / "push_demo.hdf5", "push", [whole], {"env_name": "elsewhere"})
    store_late(tmp_path)

    episode = open_dataset(tmp_path, drop_noops=drop_noops).episode(0)

    there = [1, 2, 4, 5, 6, 7, 8] if drop_noops else [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(episode) == len(there) and episode.images("agentview", range(len(there)))[:, 0, 0, 1].tolist() == there
    np.testing.assert_array_equal(episode.actions, whole.actions[there].astype(np.float32))
    np.testing.assert_allclose(episode.proprio, whole.proprio[there], atol=1e-6)
    np.testing.assert_array_equal(episode.sim_states, whole.sim_states[there])
    np.testing.assert_array_equal(episode.init_state, whole.sim_states[1])


def test_observations_that_are_stored_before_their_action_stay_there(tmp_path: Path) -> None:
    still = moving_episode(5)
    still.joints, still.sim_states = np.zeros((5, 7)), np.zeros((5, 12))  # nothing tells
    write_libero_file(tmp_path / "push_demo.hdf5", "push", [moving_episode(9), still], {"env_name": "elsewhere"})

    assert open_dataset(tmp_path).lengths.tolist() == [9, 5]


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, 1.0)])
def test_a_gripper_from_0_to_1_is_turned_by_what_the_fingers_do(
    tmp_path: Path, ends: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    episodes = [gripping_episode(length, ends) for length in (200, 9)]
    write_libero_file(tmp_path / "push_demo.hdf5", "push", episodes, {"env_name": "elsewhere"})

    dataset = open_dataset(tmp_path)

    for episode, length in zip((dataset.episode(0), dataset.episode(1)), (200, 9), strict=True):
        np.testing.assert_array_equal(episode.actions[:, 6], np.where(np.arange(length) < length // 2, -1, 1))
    assert f"{ends[0]:g} is open and {ends[1]:g} closed" in caplog.text
    assert not [said for said in dataset_warnings(dataset) if "gripper" in said]


def test_a_gripper_from_0_to_1_is_refused_where_the_fingers_do_not_tell(tmp_path: Path) -> None:
    still = gripping_episode(9, (0.0, 1.0))
    still.proprio[:, 6:] = (0.04, -0.04)
    write_libero_file(tmp_path / "push_demo.hdf5", "push", [still], {"env_name": "elsewhere"})

    with pytest.raises(InputError, match=r"push_demo\.hdf5: the gripper's actions lie within \[0, 1\]"):
        open_dataset(tmp_path)


def gripping_episode(length: int, ends: tuple[float, float]) -> RecordedEpisode:
    """Its gripper closes in the middle, and the fingers a frame later. ends: the action that opens, and closes."""
    episode = made_up_episode(np.random.default_rng(0), "push", length)
    closing = np.arange(length) >= length // 2
    episode.actions[:, 6] = np.where(closing, ends[1], ends[0])
    finger = np.where(np.roll(closing, 1) & closing, 0.01, 0.04)
    episode.proprio[:, 6:] = np.stack([finger, -finger], axis=1)
    return episode


def test_the_fingerprint_changes_with_the_data(make_libero: MakeLibero) -> None:
    root = make_libero()
    before = open_dataset(root).fingerprint()

    assert open_dataset(root).fingerprint() == before
    assert open_dataset(root, orientation="upright").fingerprint() != before
    make_libero({"one more": [5]}, folder="demos")
    assert open_dataset(root).fingerprint() != before


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("data/demo_1/actions", "'actions'"),
        ("data/demo_0/obs/ee_pos", "'obs/ee_pos'"),
        ("data/demo_1/obs", "'obs'"),
        ("data", "'data'"),
    ],
)
def test_a_missing_key_is_named_with_its_file(make_libero: MakeLibero, key: str, complaint: str) -> None:
    root = make_libero({"a task": [5, 5]})
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        del file[key]

    with pytest.raises(InputError, match=r"task_0_demo\.hdf5") as error:
        open_dataset(root)
    assert complaint in str(error.value)


def test_a_missing_instruction_is_an_error(make_libero: MakeLibero) -> None:
    root = make_libero({"a task": [5]})
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        del file["data"].attrs["problem_info"]

    with pytest.raises(InputError, match="problem_info"):
        open_dataset(root)


def test_a_truncated_file_is_named(make_libero: MakeLibero) -> None:
    root = make_libero()
    file = root / "task_1_demo.hdf5"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    with pytest.raises(InputError, match=r"task_1_demo\.hdf5.*truncated"):
        open_dataset(root)


def test_columns_of_different_lengths_are_an_error(make_libero: MakeLibero) -> None:
    root = make_libero({"a task": [6]})
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        positions = file["data/demo_0/obs/ee_pos"][:4]
        del file["data/demo_0/obs/ee_pos"]
        file["data/demo_0/obs/ee_pos"] = positions

    with pytest.raises(InputError, match="obs/ee_pos has 4 frames, but actions has 6"):
        open_dataset(root)


def test_a_file_without_episodes_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file.create_group("data").attrs["problem_info"] = '{"language_instruction": "x"}'
    with pytest.raises(InputError, match="holds no episodes"):
        open_dataset(tmp_path)
