"""The demonstration world: what is at random, what counts as success, and that it can be replayed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from atlas.data.formats import open_dataset
from atlas.environments import cubes
from atlas.environments.catalog import environment_spec, find_expert
from atlas.environments.cubes import (
    AREA_HALF_SIZE_M,
    CAMERAS,
    INSTRUCTIONS,
    MIN_DISTANCE_M,
    OBJECTS,
    CubesEnvironment,
)
from atlas.environments.cubes_expert import CubesExpert
from atlas.environments.state_world import StateWorld
from atlas.errors import InputError
from atlas.rollout.recording import RecordSettings, is_recorded, record
from atlas.system.locks import hold


@pytest.fixture(scope="module")
def env() -> Iterator[CubesEnvironment]:
    environment = CubesEnvironment(image_size=32)
    yield environment
    environment.close()


def play_expert(env: CubesEnvironment, seed: int, instruction: str, says: str | None = None) -> tuple[bool, float, int]:
    """(success, reward, steps) of the expert; with `says` it is misled about which cube to lift."""
    env.reset(seed=seed, instruction=instruction)
    if says is not None:
        env._target = INSTRUCTIONS.index(says)
    expert, reward, steps = CubesExpert(env), 0.0, 0
    while True:
        action = expert.act()
        if says is not None:
            env._target = INSTRUCTIONS.index(instruction)
        result = env.step(action, observe=False)
        if says is not None:
            env._target = INSTRUCTIONS.index(says)
        reward, steps = reward + result.reward, steps + 1
        if result.done:
            break
    return result.success, reward, steps


def test_the_same_seed_gives_the_same_start_whatever_came_before(env: CubesEnvironment) -> None:
    first = env.reset(seed=5, instruction=INSTRUCTIONS[0])
    for _ in range(12):
        env.step(np.array([1, 1, -1, 0, 0, 1, 1.0]), observe=False)
    env.reset(seed=6)

    again = env.reset(seed=5, instruction=INSTRUCTIONS[0])

    np.testing.assert_array_equal(again.images["agentview"], first.images["agentview"])
    np.testing.assert_array_equal(again.proprio, first.proprio)


def test_by_numbers_it_is_the_same_world_without_pictures(env: CubesEnvironment) -> None:
    """`state:cubes`: the proprio goes on with where the cubes are, seen from the hand."""
    world = StateWorld(env)
    assert (world.spec.name, world.spec.cameras, world.spec.proprio_dim) == ("state:cubes", (), 18)
    assert world.spec == environment_spec("state:cubes", 32)
    seen = env.reset(seed=5, instruction=INSTRUCTIONS[1])
    after = env.step(np.full(7, 0.5))

    first = world.reset(seed=5, instruction=INSTRUCTIONS[1])
    then = world.step(np.full(7, 0.5))

    assert first.images == {} and first.instruction == INSTRUCTIONS[1] and world.target_object() == "green cube"
    for mine, its in ((first, seen), (then.observation, after.observation)):
        assert mine is not None and its is not None
        np.testing.assert_array_equal(mine.proprio[:8], its.proprio)
    places = world.positions()
    for cube, name in enumerate(OBJECTS):
        there = world.observe().proprio[8 + 5 * cube :][:5]
        np.testing.assert_allclose(there[:3] + places["hand"], places[name], atol=1e-6)
        assert np.linalg.norm(there[3:]) == pytest.approx(1)
    assert find_expert("state:cubes")(world).act().shape == (7,)  # type: ignore[misc]


def test_starts_cover_the_area_and_keep_the_distance(env: CubesEnvironment) -> None:
    centres = []
    for seed in range(40):
        env.reset(seed=seed)
        centres.append([env.cube_pose(cube)[0][:2] for cube in range(2)])
    places = np.array(centres)  # [starts, cubes, 2]

    assert np.abs(places).max() <= AREA_HALF_SIZE_M + 0.005  # settling moves them a little
    assert (np.ptp(places, axis=(0, 1)) > 0.16).all()
    assert np.linalg.norm(places[:, 0] - places[:, 1], axis=-1).min() > MIN_DISTANCE_M - 0.005


def test_only_the_instruction_says_which_cube(env: CubesEnvironment) -> None:
    red, green = (env.reset(seed=11, instruction=text) for text in INSTRUCTIONS)

    for camera in CAMERAS:
        np.testing.assert_array_equal(red.images[camera], green.images[camera])
    assert (red.instruction, green.instruction) == INSTRUCTIONS
    assert {env.reset(seed=seed).instruction for seed in range(12)} == set(INSTRUCTIONS)
    with pytest.raises(InputError, match="blue"):
        env.reset(seed=0, instruction="pick up the blue cube")


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_lifting_the_named_cube_succeeds(env: CubesEnvironment, instruction: str) -> None:
    success, reward, steps = play_expert(env, 3, instruction)

    assert success and reward == 1.0 and steps < 80


def test_lifting_the_other_cube_ends_the_episode_as_a_failure(env: CubesEnvironment) -> None:
    success, reward, steps = play_expert(env, 3, INSTRUCTIONS[0], says=INSTRUCTIONS[1])

    assert not success and reward == 0.0 and steps < 200


def test_doing_nothing_is_truncated_at_the_horizon(env: CubesEnvironment) -> None:
    env.reset(seed=1)
    results = [env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]), observe=False) for _ in range(200)]

    assert not any(r.done for r in results[:-1])
    assert results[-1].truncated and not results[-1].terminated and not results[-1].success


def test_leaving_out_what_the_camera_cannot_see_changes_no_pixel(env: CubesEnvironment) -> None:
    env.reset(seed=2)
    rng = np.random.default_rng(0)
    for _ in range(15):
        env.step(np.append(rng.uniform(-1, 1, 6), -1), observe=False)
        for camera in CAMERAS.values():
            np.testing.assert_array_equal(
                env._renderer.render(camera), env._renderer.render(camera, cull=False), err_msg=camera
            )


def test_coarse_meshes_look_alike_and_weigh_the_same(env: CubesEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubes, "DRAWN_M", {})
    fine = CubesEnvironment(image_size=env.spec.image_size[0])
    triangles = [int(each._model.mesh_facenum.sum()) for each in (fine, env)]

    for each in (fine, env):
        each.reset(seed=5)
        for _ in range(4):
            each.step(np.array([0.3, 0.5, -0.8, 0, 0, 0, -1.0]), observe=False)
    off = {
        camera: np.abs(fine._renderer.render(camera).astype(int) - env._renderer.render(camera)).mean()
        for camera in CAMERAS.values()
    }
    fine_state = fine.get_state()
    fine.close()

    np.testing.assert_array_equal(env.get_state(), fine_state)
    assert triangles[1] < 0.6 * triangles[0]
    assert max(off.values()) < 1.0, f"levels of 255, per camera: {off}"


def test_an_action_moves_the_hand_as_the_action_spec_says(env: CubesEnvironment) -> None:
    """The position unit, the directions and the gripper's sign."""
    for axis in range(3):
        env.reset(seed=4)
        before = env.hand_pose()[0]
        action = np.zeros(7)
        action[axis], action[6] = -0.4, -1
        env.step(action, observe=False)
        goal = env._robot.controller.goal_pos - before
        np.testing.assert_allclose(goal, np.eye(3)[axis] * -0.4 * 0.05, atol=1e-6)
        for _ in range(9):
            env.step(action, observe=False)
        moved = env.hand_pose()[0] - before
        assert np.argmax(np.abs(moved)) == axis and moved[axis] < -0.03
    env.reset(seed=4)
    for _ in range(10):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]), observe=False)
    closed = np.ptp(env.proprio()[6:])
    for _ in range(15):
        env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]), observe=False)
    assert np.ptp(env.proprio()[6:]) > closed + 0.03


def test_recorded_demonstrations_replay_to_success(cubes_dataset: Path) -> None:
    """From the recorded start the recorded actions succeed, and the recorded frames are what the world shows."""
    dataset = open_dataset(cubes_dataset)
    env = CubesEnvironment(image_size=32)
    try:
        for number in (0, 5):
            episode = dataset.episode(number)
            observation = env.reset(init_state=episode.init_state, instruction=episode.instruction)
            for t, action in enumerate(episode.actions):
                if t < 3:
                    for camera in dataset.cameras:
                        difference = episode.images(camera, [t])[0].astype(int) - observation.images[camera]
                        assert np.abs(difference).mean() < 2
                    np.testing.assert_allclose(episode.proprio[t], observation.proprio, atol=1e-3)
                result = env.step(action)
                observation = result.observation
                if result.done:
                    break
            assert result.success
    finally:
        env.close()


def test_recording_is_balanced_labelled_and_successful(cubes_dataset: Path) -> None:
    dataset = open_dataset(cubes_dataset)

    assert sorted(dataset.tasks) == sorted(INSTRUCTIONS) and np.bincount(dataset.task_of).tolist() == [4, 4]
    assert dataset.environment == "cubes" and dataset.proprio_dim == 8
    for i in range(len(dataset)):
        episode = dataset.episode(i)
        assert episode.success and np.abs(episode.actions).max() <= 1
        assert set(np.unique(episode.actions[:, 6])) == {-1.0, 1.0}


def test_recording_goes_on_where_it_was_interrupted_and_gives_the_same(
    cubes_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And says once, for all workers, if it renders in software."""
    settings = RecordSettings(episodes=8, seed=3, image_size=32)
    whole = open_dataset(cubes_dataset)
    out = tmp_path / "again"
    parts = out / ".parts"
    with pytest.raises(KeyboardInterrupt):
        _interrupt_after(3, settings, out)
    assert 3 <= len(list(parts.glob("episode_*.npz"))) < 8 and not list(out.glob("*.hdf5"))
    first, second, *_ = sorted(parts.glob("episode_*.npz"))  # of which a power cut has left the names, or zeros
    first.write_bytes(b"")
    second.write_bytes(bytes(second.stat().st_size))
    (out / "pick_up_the_red_cube_demo.hdf5").write_bytes(b"")

    with caplog.at_level("INFO"):
        record(settings, out, workers=2)

    said = [line for line in caplog.messages if "in software" in line]
    assert len(said) == 1 or list(Path("/dev").glob("nvidia[0-9]*"))
    again = open_dataset(out)
    assert again.lengths.tolist() == whole.lengths.tolist() and not parts.exists()
    assert {path.name for path in out.iterdir()} == {path.name for path in cubes_dataset.iterdir()}
    for i in range(8):
        np.testing.assert_array_equal(again.episode(i).actions, whole.episode(i).actions)


def test_a_recording_that_does_not_say_what_it_is_begins_anew(tmp_path: Path) -> None:
    """Its note is empty after a power cut: whatever lies there may be of other settings."""
    settings, out = RecordSettings(episodes=2, image_size=32), tmp_path / "out"
    (out / ".parts").mkdir(parents=True)
    for name in ("recording.json", ".parts/episode_00000.npz"):
        (out / name).write_bytes(b"")
    np.savez(out / ".parts" / "episode_00001.npz", actions=np.zeros(3))  # whole, and of something else
    assert not is_recorded(settings, out)

    record(settings, out)

    assert is_recorded(settings, out) and len(open_dataset(out)) == 2


def test_a_folder_in_which_another_process_records_is_left_alone_or_waited_for(
    cubes_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, out = RecordSettings(episodes=8, seed=3, image_size=32), tmp_path / "out"
    with hold(out, "the other recording"):
        with pytest.raises(InputError, match=rf"Process {os.getpid()} on .* is working on this recording"):
            record(settings, out)
        waiting = ThreadPoolExecutor(1)
        waited = waiting.submit(record, settings, out, wait=True)
        deadline = time.monotonic() + 30
        while "Waiting for process" not in capsys.readouterr().err and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.copytree(cubes_dataset, out, dirs_exist_ok=True)

    waited.result(60)

    assert is_recorded(settings, out) and sorted(p.name for p in out.glob("*")) == sorted(
        p.name for p in cubes_dataset.iterdir()
    )


def test_a_folder_with_another_recording_is_left_alone(cubes_dataset: Path, tmp_path: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in cubes_dataset.iterdir()}

    with pytest.raises(InputError, match="episodes: 8 there, 10 asked"):
        record(RecordSettings(episodes=10, seed=3, image_size=32), cubes_dataset)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        record(RecordSettings(episodes=4), tmp_path)

    assert {p.name: p.stat().st_mtime_ns for p in cubes_dataset.iterdir()} == before


def _interrupt_after(episodes: int, settings: RecordSettings, out: Path) -> None:
    """Record, and press Ctrl-C when some episodes are there."""
    from unittest.mock import patch

    from atlas.system.process_control import pool

    finished = pool.as_completed

    def interrupted(jobs):  # type: ignore[no-untyped-def]
        for number, job in enumerate(finished(jobs)):
            yield job
            if number + 1 == episodes:
                raise KeyboardInterrupt

    with patch.object(pool, "as_completed", interrupted):
        record(settings, out, workers=1)
