"""LIBERO's suites as environments: what is known without the package, what is said where parts are missing, and, where
hf-libero is installed, its own scenes, starts and goals, with stand-ins for its meshes."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from atlas.checks.context import CheckContext
from atlas.checks.data_check import check_data
from atlas.checks.replay import check_replay
from atlas.checks.view_page import check_view
from atlas.config import Config, DataConfig
from atlas.data.episode import RecordedEpisode
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.data.hdf5.reader import LiberoDataset
from atlas.environments import libero_package
from atlas.environments.catalog import environment_spec, make_environment
from atlas.environments.environment import StepResult
from atlas.environments.libero import CAMERAS, LiberoEnvironment
from atlas.environments.libero_package import HORIZONS, SUITES, load_package, read_starts, tasks_of
from atlas.environments.perturbations.choices import PerturbationChoice, choose_perturbations
from atlas.environments.rendering import prepare_rendering
from atlas.environments.scene_variation import AS_IT_IS
from atlas.errors import InputError
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.traces import FilmOrder, TraceRecorder, make_film
from atlas.rollout.verdicts.failures import HIT_N, MotionWatch
from tests.checks.planted import Changed
from tests.conftest import MakeLibero
from tests.rollout.libero_assets import write_assets

installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("libero", "bddl", "easydict", "gymnasium")),
    reason='hf-libero is not installed, see "LIBERO\'s simulator" in docs/data.md',
)
SOUP = "pick up the alphabet soup and place it in the basket"
PLATE = "put the bowl on the plate"
STILL = np.array([0, 0, 0, 0, 0, 0, -1.0])


# ---- what needs no package ----------------------------------------------------------------------------------------


@pytest.fixture
def no_memory() -> Iterator[None]:
    """What was read of another package is forgotten, before and after."""
    tasks_of.cache_clear()
    yield
    tasks_of.cache_clear()


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_memory: None) -> Path:
    """A package with three tasks, of which two have one instruction in two scenes; no meshes, no settings."""
    tasks = {suite: [] for suite in SUITES} | {
        "libero_90": ["KITCHEN_SCENE1_turn_on_the_stove", "KITCHEN_SCENE10_turn_on_the_stove", "STUDY_SCENE2_wait"]
    }
    package = tmp_path / "site" / "libero" / "libero"
    (package / "benchmark").mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {tasks}")
    (package / "init_files" / "libero_90").mkdir(parents=True)
    for number, name in enumerate(tasks["libero_90"]):
        starts = np.full((4, 11 + 2 * number), float(number)) + 10 * np.arange(4)[:, None]
        torch.save(starts, package / "init_files" / "libero_90" / f"{name}.pruned_init")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATLAS_CACHE_DIR", str(tmp_path / "cache"))
    # Set and then taken away, so that it is as it was once the test is over.
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "")
    monkeypatch.delenv("LIBERO_CONFIG_PATH")
    return package


@pytest.mark.parametrize(("name", "meant"), [("libero_spacial", "libero_spatial"), ("libero_100", "libero_10")])
def test_an_unknown_suite_is_refused_and_the_nearest_named(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"Unknown environment '{name}'. Did you mean '{meant}'"):
        environment_spec(name)


def test_a_missing_package_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch, no_memory: None) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    for name in HORIZONS:
        with pytest.raises(InputError, match=rf"'{name}' needs LIBERO's package, .* pip install .*\[libero\]"):
            environment_spec(name)


def test_a_suite_is_known_without_importing_its_package(made_up: Path) -> None:
    spec = environment_spec("libero_90", 64)

    assert spec.instructions == ("turn on the stove", "wait") and "libero" not in sys.modules
    assert (spec.name, spec.horizon, spec.proprio_dim, spec.image_size) == ("libero_90", 400, 8, (64, 64))
    assert spec.cameras == ("agentview", "eye_in_hand")
    assert environment_spec("libero").instructions == spec.instructions
    scenes = [task.definition.name for task in tasks_of("libero_90")["turn on the stove"]]
    assert scenes == ["KITCHEN_SCENE1_turn_on_the_stove.bddl", "KITCHEN_SCENE10_turn_on_the_stove.bddl"]


def write_pro(folder: Path, suite: str, words: dict[str, str]) -> None:
    """{a task's name: what its file says}, as LIBERO-PRO's dataset has it."""
    for kind in ("bddl_files", "init_files"):
        (folder / kind / suite).mkdir(parents=True)
    for name, said in words.items():
        (folder / "bddl_files" / suite / f"{name}.bddl").write_text(f"(define (problem X)\n  (:language {said})\n)")
        torch.save(np.zeros((2, 11)), folder / "init_files" / suite / f"{name}.pruned_init")


def test_suites_of_libero_pro_are_read_from_their_files(made_up: Path, tmp_path: Path) -> None:
    fetched = tmp_path / "home" / ".cache" / "libero" / "pro"
    write_pro(fetched, "libero_goal_lan", {"open_the_drawer": "Pull the  drawer open", "wait": "stay"})
    write_pro(made_up, "libero_goal_swap", {"open_the_drawer": "Pull the drawer open"})

    spec = environment_spec("libero-pro-goal-lan", 64)
    assert (spec.instructions, spec.horizon) == (("pull the drawer open", "stay"), 300)
    assert environment_spec("libero-pro-goal-swap").instructions == ("open the drawer",)  # only places have changed
    (task,) = tasks_of("libero-pro-goal-lan")["stay"]
    assert read_starts(task).shape == (2, 11)
    (fetched / "init_files" / "libero_goal_lan" / "wait.pruned_init").write_bytes(b"")
    tasks_of.cache_clear()
    with pytest.raises(InputError, match=r"wait\.bddl has no starts"):
        environment_spec("libero-pro-goal-lan")
    with pytest.raises(InputError, match=r"bddl_files/libero_10_task: .* Fetch them once: hf download"):
        environment_spec("libero-pro-10-task")


def test_starts_are_read_without_running_what_a_file_names(made_up: Path) -> None:
    first, other = tasks_of("libero_90")["turn on the stove"]
    torch.save(subprocess.check_call, other.starts)

    assert read_starts(first).shape == (4, 11) and read_starts(first)[3, 0] == 30
    with pytest.raises(InputError, match=r"SCENE10_turn_on_the_stove.pruned_init cannot be read .*check_call"):
        read_starts(other)


def test_missing_meshes_are_said_with_where_they_were_looked_for(made_up: Path, tmp_path: Path) -> None:
    """And what the package would ask for on the standard input is written before, where it bothers nobody."""
    with pytest.raises(InputError) as missing:
        make_environment("libero_90")

    said = str(missing.value)
    assert str(made_up / "assets") in said and str(tmp_path / "home" / ".cache" / "libero" / "assets") in said
    assert "hf download lerobot/libero-assets --repo-type dataset --local-dir ~/.cache/libero/assets" in said
    written = yaml.safe_load((tmp_path / "cache" / "libero" / "config.yaml").read_text())
    assert written["bddl_files"] == str(made_up / "bddl_files")
    assert os.environ["LIBERO_CONFIG_PATH"] == str(tmp_path / "cache" / "libero")
    assert not (tmp_path / "home").exists()


def test_settings_of_ones_own_are_left_alone(made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own" / "config.yaml"
    own.parent.mkdir()
    own.write_text("assets: /my/meshes\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(own.parent))

    with pytest.raises(InputError, match="/my/meshes"):
        make_environment("libero_90")

    assert own.read_text() == "assets: /my/meshes\n" and not (tmp_path / "cache").exists()
    own.write_text("/my/meshes")
    with pytest.raises(InputError, match=f"{own} is not a settings file of LIBERO"):
        make_environment("libero_90")


# ---- what the package has -----------------------------------------------------------------------------------------


@installed
def test_the_benchmark_has_its_tasks_instructions_and_starts() -> None:
    tasks = {suite: [task for same in tasks_of(suite).values() for task in same] for suite in SUITES}

    assert {suite: len(of) for suite, of in tasks.items()} == {
        "libero_spatial": 10,
        "libero_object": 10,
        "libero_goal": 10,
        "libero_10": 10,
        "libero_90": 90,
    }
    assert sum(len(same) for same in tasks_of("libero").values()) == 130
    assert environment_spec("libero_object").instructions[0] == SOUP
    assert "put both moka pots on the stove" in environment_spec("libero_10").instructions
    assert all(len(read_starts(task)) == 50 and task.definition.is_file() for of in tasks.values() for task in of)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Settings that name made-up meshes, for this process and those that it starts; no display."""
    folder = tmp_path_factory.mktemp("libero")
    (folder / "config.yaml").write_text(yaml.safe_dump({"assets": str(write_assets(folder / "assets"))}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBERO_CONFIG_PATH", str(folder))
        yield folder


@installed
def test_a_mujoco_that_is_too_new_is_warned_of_once(
    stand_ins: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare_rendering()
    libero_package._warn_of_mujoco.cache_clear()
    monkeypatch.setattr(importlib.import_module("mujoco"), "__version__", "3.10.1")
    for suite in ("libero_goal", "libero_spatial", "libero_spatial"):
        load_package(suite)

    (said,) = caplog.messages
    assert "MuJoCo 3.10.1" in said and "mujoco<3.4" in said


@pytest.fixture(scope="module")
def objects(stand_ins: Path) -> Iterator[LiberoEnvironment]:
    env = LiberoEnvironment("libero_object", 48)
    yield env
    env.close()


@pytest.fixture(scope="module")
def goals(stand_ins: Path) -> Iterator[LiberoEnvironment]:
    env = LiberoEnvironment("libero_goal", 48)
    yield env
    env.close()


@installed
def test_an_episode_begins_as_in_liberos_own_evaluation_and_shows_the_same_pixels(goals: LiberoEnvironment) -> None:
    """To the bit: the state after settling, what follows of it, and both cameras, upright."""
    from libero.libero.envs import OffScreenRenderEnv

    task = tasks_of("libero_goal")[PLATE][0]
    theirs = OffScreenRenderEnv(bddl_file_name=str(task.definition), use_camera_obs=False)  # rendered below
    action = np.array([0.5, -0.3, 0.2, 0.1, 0.2, -0.4, 1.0])
    theirs.seed(0)
    theirs.reset()
    theirs.set_init_state(read_starts(task)[1])
    for _ in range(10):
        theirs.step([0] * 6 + [-1])

    goals.reset(seed=20, instruction=PLATE)  # another episode first: nothing of it is left
    goals.step(action, observe=False)
    observation = goals.reset(seed=10, instruction=PLATE)
    np.testing.assert_array_equal(goals.get_state(), theirs.get_sim_state())
    for _ in range(3):
        theirs.step(action)
        observation = goals.step(action).observation
    np.testing.assert_array_equal(goals.get_state(), theirs.get_sim_state())

    goals.set_state(goals.get_state())
    observation = goals.observe()
    raw = theirs.set_init_state(goals.get_state())
    theirs.sim._render_context_offscreen.gl_ctx.make_current()
    assert observation is not None and observation.instruction == PLATE
    for name, camera in CAMERAS.items():
        rendered = theirs.sim.render(width=48, height=48, camera_name=camera)
        np.testing.assert_array_equal(observation.images[name], rendered[::-1], err_msg=name)
    np.testing.assert_allclose(observation.proprio[:3], raw["robot0_eef_pos"], atol=1e-6)
    np.testing.assert_allclose(observation.proprio[6:], raw["robot0_gripper_qpos"], atol=1e-6)
    theirs.close()


@installed
def test_a_start_is_a_function_of_seed_and_instruction(goals: LiberoEnvironment) -> None:
    """Whatever came before, and where cabinet and stove stand, too, which is in no state."""
    states, scenes, images = [], [], []
    for other in (40, 70):
        goals.reset(seed=other, instruction=PLATE)
        for _ in range(3):
            goals.step(STILL + 0.5, observe=False)
        images.append(goals.reset(seed=31, instruction=PLATE).images["agentview"])
        states.append(goals.get_state())
        scenes.append(np.array(goals._scene._model.body_pos))

    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(scenes[0], scenes[1])
    np.testing.assert_array_equal(images[0], images[1])
    goals.reset(seed=41, instruction=PLATE)
    assert np.abs(goals.get_state() - states[0]).max() > 1e-3
    assert goals.reset(seed=33).instruction == goals.spec.instructions[3]


@installed
@pytest.mark.parametrize("purpose", ["selection", "report"])
def test_an_evaluation_sees_each_of_the_fifty_starts(purpose: str) -> None:
    """500 episodes of a suite are LIBERO's protocol: ten tasks, each from its fifty starts."""
    planned = plan_episodes("libero_object", 500, purpose, seed=3)  # type: ignore[arg-type]
    env = object.__new__(LiberoEnvironment)  # without its simulator
    env._tasks = tasks_of("libero_object")

    seen = {(e.instruction, env._start(e.seed, e.instruction)[1].tobytes()) for e in planned}

    starts = {(i, start.tobytes()) for i, tasks in env._tasks.items() for t in tasks for start in read_starts(t)}
    assert seen == starts


@installed
def test_an_instruction_of_several_scenes_begins_in_each_and_a_state_tells_its_own() -> None:
    env = object.__new__(LiberoEnvironment)
    env._tasks, env.spec = tasks_of("libero_90"), environment_spec("libero_90")
    instruction = "put the black bowl on top of the cabinet"
    tasks, rounds = env._tasks[instruction], len(env._tasks)

    begun = [env._start(number * rounds, instruction) for number in range(150)]

    assert len(tasks) == 3 and {(task.definition, start.tobytes()) for task, start in begun} == {
        (task.definition, start.tobytes()) for task in tasks for start in read_starts(task)
    }
    for task, start in begun[:6]:
        moved = start + np.random.default_rng(0).normal(0, 0.005, start.shape)
        assert env._task_with(moved, instruction) == task
    with pytest.raises(InputError, match="A state of 7 numbers does not belong to the task"):
        env._task_with(np.zeros(7), instruction)


@installed
@pytest.mark.slow
@pytest.mark.parametrize("suite", list(SUITES))
def test_every_task_begins_from_its_starts_and_knows_its_states(suite: str, stand_ins: Path) -> None:
    with closing(LiberoEnvironment(suite, 16)) as env:
        for instruction, tasks in tasks_of(suite).items():
            for number, task in enumerate(tasks):
                env.reset(seed=number * len(env.spec.instructions), instruction=instruction)
                assert env._task == task and not env.step(STILL).done
                state = env.get_state()

                env.reset(init_state=state, instruction=instruction)

                assert env._task == task
                np.testing.assert_array_equal(env.get_state(), state)


# ---- acting -------------------------------------------------------------------------------------------------------


@installed
def test_a_scene_is_perturbed_and_put_back(objects: LiberoEnvironment) -> None:
    """In this suite things stand on the floor: it is the table, and the walls are the background."""
    first = objects.reset(seed=3, instruction=SOUP)
    plain = first.images
    for name in ("camera_pose", "light_intensity", "table_texture", "table_colour", "background", "start_pose"):
        objects.vary(PerturbationChoice(name, 4).of_episode(3, objects.spec).variation())
        seen = objects.reset(seed=3, instruction=SOUP)
        changed = np.abs(seen.images["agentview"].astype(int) - plain["agentview"]).mean()
        assert changed > (0.3 if name in ("background", "start_pose") else 3), (name, changed)
        moved = np.abs(seen.proprio[:6] - first.proprio[:6]).max()
        assert (moved > 0.05) if name == "start_pose" else (moved == 0), (name, moved)
    objects.vary(AS_IT_IS)

    again = objects.reset(seed=3, instruction=SOUP)

    for camera in CAMERAS:
        np.testing.assert_array_equal(again.images[camera], plain[camera])
    np.testing.assert_array_equal(again.proprio, first.proprio)
    names = {choice.name for choice in choose_perturbations(["all:1"], objects.spec)}
    assert {"camera_field", "light_colour", "blur", "typos", "paraphrase", "action_delay"} <= names
    with pytest.raises(InputError, match="'libero_object' does not support the perturbation 'distractors'"):
        choose_perturbations(["distractors"], objects.spec)


@installed
def test_what_is_not_the_suites_is_refused(objects: LiberoEnvironment) -> None:
    with pytest.raises(InputError, match=f"no task 'pick the alphabet soup'. Did you mean '{SOUP}'"):
        objects.reset(seed=0, instruction="pick the alphabet soup")
    with pytest.raises(InputError, match=r"A state of 79 numbers does not belong to the task .* whose scene has 110"):
        objects.reset(init_state=np.zeros(79), instruction=SOUP)


@installed
def test_a_mesh_that_is_missing_is_named(objects: LiberoEnvironment, stand_ins: Path) -> None:
    milk = stand_ins / "assets" / "stable_hope_objects" / "milk" / "milk.xml"
    away = milk.rename(milk.with_suffix(".away"))
    try:
        with pytest.raises(InputError, match=rf"basket' of libero_object needs {milk}, which is missing"):
            objects.reset(seed=0, instruction="pick up the milk and place it in the basket")
    finally:
        away.rename(milk)


@installed
def test_actions_move_the_hand_and_the_fingers_as_the_action_spec_says(objects: LiberoEnvironment) -> None:
    before = objects.reset(seed=0, instruction=SOUP)
    for _ in range(12):
        result = objects.step(np.array([0, 0.3, 0, 0, 0, 0, 1.0]), observe=False)
    moved = objects._scene.proprio() - before.proprio

    assert moved[1] > 0.02 and np.abs(moved[[0, 2]]).max() < 0.01
    assert before.proprio[6] > 0.035 and objects._scene.proprio()[6] < 0.005  # open after settling, then closed
    assert result.observation is None and not result.done
    np.testing.assert_allclose(objects.positions()["hand"], objects._scene.proprio()[:3], atol=1e-6)
    assert {"left finger", "right finger", "alphabet_soup_1", "basket_1"} < set(objects.positions())


@installed
def test_a_hand_that_hits_the_floor_or_another_thing_has_collided(objects: LiberoEnvironment) -> None:
    """Another than those that the task's definition names; a region of a thing there means the thing."""
    objects.reset(seed=0, instruction=SOUP)
    watch, down = MotionWatch(objects), np.array([0, 0, -1.0, 0, 0, 0, -1])
    for _ in range(30):
        objects.step(down, observe=False)
        watch.stepped(down)
    failure, forces = watch.failure(), objects.contact_forces()

    assert failure.kind == "collided" and 5 < failure.step < 30 and max(forces.values()) > HIT_N
    assert objects.task_things() == {"alphabet_soup_1", "basket_1"} and not set(forces) <= objects.task_things()
    assert objects.positions().keys() > objects.task_things()


@installed
def test_a_cabinets_drawer_stands_for_the_cabinet(goals: LiberoEnvironment) -> None:
    goals.reset(seed=0, instruction="open the middle drawer of the cabinet")

    assert goals.task_things() == {"wooden_cabinet_1"} and goals.contact_forces() == {}


@installed
def test_an_episode_is_truncated_at_the_suites_horizon(objects: LiberoEnvironment) -> None:
    objects.reset(seed=0, instruction=SOUP)
    objects._steps = 278

    assert [objects.step(STILL, observe=False).truncated for _ in range(2)] == [False, True]


@installed
def test_a_state_is_put_back_with_the_fingers_where_they_were(objects: LiberoEnvironment) -> None:
    """Also when it is begun with: what follows is what followed then."""
    objects.reset(seed=20, instruction=SOUP)
    start = objects.get_state()
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 7))
    actions[:, 6] = -1
    played = []
    for again in (False, True, True):
        if again:
            objects.reset(init_state=start, instruction=SOUP)
        for action in actions:
            objects.step(action, observe=False)
        played.append(objects.get_state())

    np.testing.assert_allclose(played[1], played[0], atol=2e-3)
    np.testing.assert_array_equal(played[2], played[1])
    picture = objects.picture(64)
    objects.set_state(start)
    assert picture.shape == (64, 64, 3) and np.abs(picture.astype(int) - objects.picture(64)).mean() > 0.5


@installed
def test_a_film_shows_the_scene_of_its_task(objects: LiberoEnvironment, tmp_path: Path) -> None:
    """Whatever the worker that makes it has played since."""
    objects.reset(seed=0, instruction=SOUP)
    recorder = TraceRecorder(objects, objects.observe())
    objects.step(STILL, observe=False)
    recorder.stepped(STILL, StepResult(None, 0.0, False, False, False))
    objects.reset(seed=0, instruction="pick up the butter and place it in the basket")

    make_film(objects, FilmOrder(tmp_path / "film.mp4", recorder.trace(), SOUP, verdict="failure", most_pictures=1))

    assert objects._task == tasks_of("libero_object")[SOUP][0] and (tmp_path / "film.mp4").stat().st_size > 1000


def _thrown(env: LiberoEnvironment, seed: int) -> np.ndarray:
    """A start in which the soup flies up above the basket, to fall into it a second later."""
    env.reset(seed=seed, instruction=SOUP)
    state, basket = env.get_state(), env.positions()["basket_1"]
    joint = env._scene._model.joint("alphabet_soup_1_joint0")
    place, speed = 1 + int(joint.qposadr[0]), 1 + env._scene._model.nq + int(joint.dofadr[0])
    state[place : place + 3] = basket + np.array([0, 0, 0.1])
    state[speed : speed + 6] = [0, 0, 4.5 + 0.02 * seed, 0, 0, 0]
    return state


def _demonstration(env: LiberoEnvironment, seed: int) -> RecordedEpisode:
    """The hand goes here and there, the fingers close and open, until the soup is in the basket."""
    rng = np.random.default_rng(seed)
    ways, observation = rng.uniform(-0.8, 0.8, (12, 6)), env.reset(init_state=_thrown(env, seed), instruction=SOUP)
    columns: dict[str, list[np.ndarray]] = {k: [] for k in ("agentview", "eye_in_hand", "proprio", "actions", "states")}
    for step in range(60):
        action = np.append(ways[step // 5] + rng.normal(0, 0.1, 6), 1.0 if step % 16 > 7 else -1.0)
        for name, value in (*observation.images.items(), ("proprio", observation.proprio), ("actions", action)):
            columns[name].append(value)
        columns["states"].append(env.get_state())
        result = env.step(action)
        if result.done:
            break
        assert result.observation is not None
        observation = result.observation
    assert result.success and result.terminated and result.reward == 1 and step > 15
    rewards = np.zeros(len(columns["actions"]), np.float32)
    rewards[-1] = 1
    made = {name: np.stack(values) for name, values in columns.items()}
    images = {camera: made[camera] for camera in env.spec.cameras}
    return RecordedEpisode(
        SOUP, images, made["proprio"], made["actions"], None, rewards, made["states"], model_xml=env.model_xml
    )


@pytest.fixture(scope="module")
def recording(objects: LiberoEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes as LIBERO would have recorded them: upside down, with the simulator's states."""
    path = tmp_path_factory.mktemp("recording") / f"{SOUP.replace(' ', '_')}_demo.hdf5"
    episodes = [_demonstration(objects, seed) for seed in (0, 10)]
    write_libero_file(path, SOUP, episodes, {"env_name": "Libero_Floor_Manipulation", "type": 1})
    return path


@installed
def test_a_recording_replays_as_it_was_and_shows_what_is_evaluated(recording: Path) -> None:
    found = check_data(Config(data=DataConfig(path=str(recording))), env="libero_object")

    assert not [f.message for f in found if f.severity == "error"]
    (replay,) = [f for f in found if f.check == "replay"]
    assert replay.message.startswith("replayed as recorded, 2 of 2 episodes succeed")
    assert replay.evidence["hand_drift_mm"] < 1
    views = [f for f in found if f.check == "view"]
    assert len(views) == 2 and all("is what evaluation shows" in f.message for f in views)
    assert LiberoDataset(recording).environment is None  # evaluation.env: auto stays without a simulator


@installed
def test_pictures_that_are_read_upside_down_are_named(recording: Path, objects: LiberoEnvironment) -> None:
    dataset = LiberoDataset(recording, orientation="upright")

    views = list(check_view(CheckContext(dataset, dataset.cameras, np.array([0]), np.array([1]), objects)))

    assert [f.severity for f in views] == ["error", "error"]
    assert all("is upside down (rows reversed), compared with what evaluation shows" in f.message for f in views)
    assert all(f.fix == "Set data.orientation=upside_down (it is read as upright)." for f in views)


@installed
def test_demonstrations_that_fail_are_named_though_each_task_has_its_own_objects(
    recording: Path, objects: LiberoEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are played as the other tasks, too: here as one of them, which has other things about."""
    others = (SOUP, "pick up the butter and place it in the basket")
    monkeypatch.setattr(objects, "spec", replace(objects.spec, instructions=others))
    dataset = Changed(LiberoDataset(recording), keep=slice(0, 12))

    (found,) = check_replay(CheckContext(dataset, dataset.cameras, np.array([0]), np.array([1]), objects))

    assert found.severity == "error" and "[0, 1] are demonstrations that fail" in found.message


@installed
def test_states_are_compared_with_those_of_their_own_task(recording: Path, stand_ins: Path) -> None:
    """Of all suites, whose first task has another scene."""
    dataset = LiberoDataset(recording)
    with closing(LiberoEnvironment("libero", 16)) as env:
        assert env.spec.instructions[0] != SOUP
        assert CheckContext(dataset, dataset.cameras, np.array([0]), np.array([1]), env).states_fit


def test_data_is_looked_at_without_the_package(
    made_up: Path, make_libero: MakeLibero, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LIBERO file names no world of Atlas, so its check starts none unless it is told to."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = Config(data=DataConfig(path=str(make_libero())))

    assert not [f for f in check_data(config) if f.check in ("replay", "view")]
    with pytest.raises(InputError, match=r"pip install .*\[libero\]"):
        check_data(config, env="libero_object")
