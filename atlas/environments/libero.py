"""LIBERO's suites of tasks as environments, through the package hf-libero.

An environment is a suite (`libero_object`), or all suites (`libero`). Each task has its own scene; the environment
keeps the current task's, and makes another when another instruction is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.environments.libero_package import HORIZONS, LiberoTask, load_package, read_starts, tasks_of
from atlas.environments.model_variation import ModelVariation
from atlas.environments.rendering import prepare_rendering, quiet_robosuite
from atlas.environments.robot_contacts import RobotContacts
from atlas.environments.scene_variation import AS_IT_IS, SceneVariation
from atlas.errors import InputError, did_you_mean
from atlas.types import Observation

_T = TypeVar("_T")

CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}  # our name: robosuite's
# At each reset LIBERO draws the places of its cabinets and stoves with numpy's global generator, and its states do not
# hold them. With this seed at each reset, a task has the same scene in all episodes, and a state is complete.
SCENE_SEED = 0
SETTLE_STEPS = 10  # in LIBERO's protocol: at a start, objects may hang slightly above what they stand on
SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_MOST_DRAWS = 20
_COLLISION_GROUP = 0  # shapes that collide and are not drawn


def libero_spec(name: str, image_size: int) -> EnvironmentSpec:
    """Describe what a suite offers, without importing the simulator. Raises InputError where the package is not
    installed."""
    return EnvironmentSpec(
        name=name,
        instructions=tuple(tasks_of(name)),
        cameras=tuple(CAMERAS),
        image_size=(image_size, image_size),
        proprio_dim=8,
        horizon=HORIZONS[name],
        action_bounds=((-1.0,) * 7, (1.0,) * 7),
        variable=frozenset({"camera", "light", "table", "background", "start_pose"}),
    )


class LiberoEnvironment:
    """The tasks of a suite. Reward 1 on success, which ends an episode; proprio [8] as in LIBERO's demonstrations:
    end-effector position (m), its orientation as axis-angle (rad), the two finger positions (m).

    Seeds go through the task's own starts in turn: `atlas eval` with 50 episodes per instruction plays each of LIBERO's
    50 starts. Cabinets and stoves stand in the same places after every reset, see `SCENE_SEED`.
    """

    def __init__(self, name: str, image_size: int = 128) -> None:
        """Raises InputError where a package or LIBERO's meshes and textures are missing."""
        self.spec = libero_spec(name, image_size)
        self._tasks = tasks_of(name)
        prepare_rendering()
        quiet_robosuite()
        load_package(name)
        self._task: LiberoTask | None = None
        self._loaded: LiberoScene | None = None
        self._variation = AS_IT_IS
        self._steps = 0

    # ---- the contract ------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        """See `Simulator.reset`. After a reset with a seed the objects settle for half a second, which does not count
        as steps; after one with `init_state` they do not.

        Raises InputError for an instruction that the suite lacks, and for a state of another scene.
        """
        assert (seed is None) != (init_state is None), "give one of seed and init_state"
        instruction = self._known(instruction, seed)
        if seed is not None:
            task, start = self._start(seed, instruction)
            self._enter(task).begin(start)
        else:
            state = np.asarray(init_state, np.float64)
            self._enter(self._task_with(state, instruction)).begin_at(state)
        self._steps = 0
        return self.observe()

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """Apply one action [7], clipped to [-1, 1] as the controller does."""
        clipped = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        reward, success = self._scene.act(clipped)
        self._steps += 1
        return StepResult(
            observation=self.observe() if observe else None,
            reward=reward,
            terminated=success,
            truncated=not success and self._steps >= self.spec.horizon,
            success=success,
            executed=clipped,
        )

    def observe(self) -> Observation:
        """See `Simulator.observe`."""
        assert self._task is not None
        return Observation(self._scene.images(), self._scene.proprio(), self._task.instruction)

    def get_state(self) -> np.ndarray:
        """Time, joint positions and joint velocities, as LIBERO records them: float64 [D]."""
        return self._scene.state()

    def set_state(self, state: np.ndarray) -> None:
        """Put the scene into a recorded state, and restart the controller from there."""
        self._scene.restore(state)

    def positions(self) -> dict[str, np.ndarray]:
        """See `Simulator.positions`. Objects have their names in LIBERO's task, such as `alphabet_soup_1`."""
        return self._scene.positions()

    def picture(self, size: int) -> np.ndarray:
        """The scene as `agentview` sees it."""
        return self._scene.picture(size)

    def contact_forces(self) -> dict[str, float]:
        """See `FeelsContacts.contact_forces`; cabinets and stoves have their names in LIBERO's task."""
        return self._scene.contact_forces()

    def task_things(self) -> frozenset[str]:
        """See `NamesTaskThings.task_things`: the objects of interest in LIBERO's definition of the task."""
        return self._scene.task_things()

    def vary(self, variation: SceneVariation) -> None:
        """See `VariableScene.vary`."""
        self._variation = variation

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
        self._loaded, self._task = None, None

    @property
    def model_xml(self) -> str:
        """The MuJoCo model of the current task's scene, as XML."""
        return self._scene.model_xml

    # ---- inside ------------------------------------------------------------------------------------------

    @property
    def _scene(self) -> LiberoScene:
        assert self._loaded is not None, "reset comes first"
        return self._loaded

    def _known(self, instruction: str | None, seed: int | None) -> str:
        if instruction is None:
            if seed is None and self._task is not None:
                return self._task.instruction
            return self.spec.instructions[(seed or 0) % len(self._tasks)]
        if instruction not in self._tasks:
            raise InputError(
                f"The environment '{self.spec.name}' has no task '{instruction}'."
                f"{did_you_mean(instruction, self._tasks)} It has: {'; '.join(self.spec.instructions)}."
            )
        return instruction

    def _start(self, seed: int, instruction: str) -> tuple[LiberoTask, np.ndarray]:
        """The task and start of a seed. Evaluation goes through the instructions in turn, so that each round of
        instructions takes the next start."""
        tasks, rounds = self._tasks[instruction], seed // len(self._tasks)
        task = tasks[rounds % len(tasks)]
        starts = read_starts(task)
        return task, starts[rounds // len(tasks) % len(starts)]

    def _task_with(self, state: np.ndarray, instruction: str) -> LiberoTask:
        """The instruction's task to which a state belongs: of several, the one whose starts come closest to it."""
        tasks = [task for task in self._tasks[instruction] if read_starts(task).shape[1:] == state.shape]
        if not tasks:
            sizes = sorted({read_starts(task).shape[1] for task in self._tasks[instruction]})
            raise InputError(
                f"A state of {state.size} numbers does not belong to the task '{instruction}' of '{self.spec.name}', "
                f"whose scene has {' or '.join(map(str, sizes))}."
            )
        return min(tasks, key=lambda task: float(np.abs(read_starts(task) - state)[:, 1:].sum(axis=1).min()))

    def _enter(self, task: LiberoTask) -> LiberoScene:
        if self._loaded is None or task != self._task:
            self.close()
            self._loaded = LiberoScene(task, self.spec.image_size[0])
            self._task = task
        self._loaded.vary(self._variation)
        return self._loaded


class LiberoScene:
    """A task's scene. Making it takes seconds; after that, each episode begins within milliseconds.

    `load_package` must have imported LIBERO's package. Raises InputError where a part of the scene is missing.
    """

    def __init__(self, task: LiberoTask, image_size: int) -> None:
        from libero.libero.envs.env_wrapper import ControlEnv

        self._size = image_size
        # The package does scene, physics, control and goal. By default it would make the scene again at each reset,
        # which takes as long as the first time, and render images in every step, whether or not they are needed.
        try:
            made = _with_objects_placed(
                lambda: ControlEnv(
                    bddl_file_name=str(task.definition),
                    hard_reset=False,
                    ignore_done=True,
                    has_offscreen_renderer=False,
                    use_camera_obs=False,
                )
            )
        except FileNotFoundError as error:
            raise InputError(
                f"The task '{task.instruction}' of {task.suite} needs {error.filename}, which is missing; fetch "
                "LIBERO's meshes and textures again, or install hf-libero again."
            ) from None
        self._env = made.env
        self._env._observables.clear()  # read below, once per step instead of once per physics step
        self._robot = self._env.robots[0]
        self._model: Any = self._env.sim.model._model
        self._data: Any = self._env.sim.data._data
        self._renderers: dict[int, Any] = {}
        table, background = surfaces(self._model)
        self._variations = ModelVariation(self._model, np.array(self._env.workspace_offset), table, background)
        self._variation = AS_IT_IS
        things = {**self._env.objects_dict, **self._env.fixtures_dict}
        names = {self._env.obj_body_id[name]: name for name in things if name in self._env.obj_body_id}
        self._things = frozenset(things)
        self._contacts = RobotContacts(self._model, self._data, self._robot.robot_model.root_body, names, "table")
        self._fingers = self._robot._ref_gripper_joint_pos_indexes
        self._finger_motors = [self._env.sim.model.actuator_name2id(name) for name in self._robot.gripper.actuators]

    # ---- episodes ----------------------------------------------------------------------------------------

    def begin(self, start: np.ndarray) -> None:
        """Begin as LIBERO's evaluations do: reset the scene, put it into a start [D], and let it settle."""
        self._reset()
        self._put(start)
        if self._variation.start_pose is not None:
            self._bend(np.array(self._variation.start_pose))
        for _ in range(SETTLE_STEPS):
            self._env.step(SETTLE_ACTION)

    def vary(self, variation: SceneVariation) -> None:
        """Change cameras, lights and surfaces, and the arm's pose at starts, from the next episode on."""
        if variation == self._variation:
            return
        self._variation = variation
        if self._variations.apply(variation):  # renderers keep textures as they were
            for renderer in self._renderers.values():
                renderer.close()
            self._renderers.clear()

    def begin_at(self, state: np.ndarray) -> None:
        """Begin in exactly this state [D], as a recording does."""
        self._reset()
        self.restore(state)

    def act(self, action: np.ndarray) -> tuple[float, bool]:
        """Apply one action [7] within [-1, 1]; returns the reward, which is 1 on success, and whether the goal is
        reached."""
        _, reward, success, _ = self._env.step(action)
        return float(reward), bool(success)

    def state(self) -> np.ndarray:
        """Time, joint positions and joint velocities: float64 [D], robosuite's flattened form."""
        return np.array(self._env.sim.get_state().flatten())

    def restore(self, state: np.ndarray) -> None:
        """Put the scene into a state [D]; the controllers then hold arm and gripper where they are."""
        self._put(state)
        self._hold_still()
        # The gripper's command is ramped, and states do not hold the ramp's position: the fingers give it.
        low, high = self._model.actuator_ctrlrange[self._finger_motors].T
        at = (self._data.qpos[self._fingers] - low) / (high - low)
        self._robot.gripper.current_action = np.clip(2 * at - 1, -1.0, 1.0)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._env.close()

    # ---- observations ------------------------------------------------------------------------------------

    def images(self) -> dict[str, np.ndarray]:
        """{our camera's name: uint8 [size, size, 3]}, upright."""
        return {name: self._render(camera, self._size) for name, camera in CAMERAS.items()}

    def picture(self, size: int) -> np.ndarray:
        """The picture that `agentview` shows: uint8 [size, size, 3]."""
        return self._render(CAMERAS["agentview"], size)

    def proprio(self) -> np.ndarray:
        """End-effector position (m), its orientation as axis-angle (rad), the two finger positions (m): float32 [8]."""
        from robosuite.utils import transform_utils

        position = self._data.site_xpos[self._robot.eef_site_id]
        w, x, y, z = self._env.sim.data.get_body_xquat(self._robot.robot_model.eef_name)
        rotation = transform_utils.quat2axisangle(np.array([x, y, z, w]))
        return np.concatenate([position, rotation, self._data.qpos[self._fingers]]).astype(np.float32)

    def positions(self) -> dict[str, np.ndarray]:
        """{name: float64 [3]} of the hand, its fingers and the movable objects, in metres."""
        pads = self._robot.gripper.important_geoms
        fingers = {
            f"{side} finger": np.array(self._data.geom(pads[f"{side}_fingerpad"][0]).xpos) for side in ("left", "right")
        }
        bodies = self._env.obj_body_id
        objects = {name: np.array(self._data.xpos[bodies[name]]) for name in self._env.objects_dict}
        return {"hand": np.array(self._data.site_xpos[self._robot.eef_site_id])} | fingers | objects

    def contact_forces(self) -> dict[str, float]:
        """{thing that the robot touches: the force, N}; floor, walls and what objects stand on are `table`."""
        return self._contacts.forces()

    def task_things(self) -> frozenset[str]:
        """The task's objects of interest; a region of a thing, such as a cabinet's drawer, counts as the thing."""
        named = self._env.obj_of_interest
        return frozenset(t for t in self._things if any(n == t or n.startswith(f"{t}_") for n in named))

    @property
    def model_xml(self) -> str:
        """The MuJoCo model as XML."""
        return str(self._env.sim.model.get_xml())

    # ---- inside ------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        _with_objects_placed(self._env.reset)
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)  # robosuite keeps the last episode's

    def _bend(self, turn: np.ndarray) -> None:
        """Turn the arm's joints by these angles [7], rad, as far as they go, and hold it there."""
        joints = [self._env.sim.model.joint_name2id(name) for name in self._robot.robot_joints]
        low, high = self._model.jnt_range[joints].T
        places = self._robot._ref_joint_pos_indexes
        self._data.qpos[places] = np.clip(self._data.qpos[places] + turn, low, high)
        self._env.sim.forward()
        self._hold_still()

    def _hold_still(self) -> None:
        controller = self._robot.controller
        controller.update(force=True)
        controller.reset_goal()

    def _put(self, state: np.ndarray) -> None:
        self._env.sim.set_state_from_flattened(np.asarray(state, np.float64))
        self._env.sim.forward()
        self._env._post_process()  # makes a stove that is on glow

    def _render(self, camera: str, size: int) -> np.ndarray:
        """An image with shadows, reflections and smooth edges, as in LIBERO's demonstrations."""
        import mujoco

        if size not in self._renderers:
            buffer = self._model.vis.global_
            buffer.offwidth, buffer.offheight = max(size, buffer.offwidth), max(size, buffer.offheight)
            self._renderers[size] = mujoco.Renderer(self._model, size, size)
        options = mujoco.MjvOption()
        options.geomgroup[_COLLISION_GROUP] = 0
        renderer = self._renderers[size]
        renderer.update_scene(self._data, camera=camera, scene_option=options)
        return np.asarray(renderer.render())


def surfaces(model: Any) -> tuple[list[str], list[str]]:
    """The materials of a scene's table and of its background, floor and walls. Where things stand on the floor, it is
    the table, and the background is the walls."""
    floor, walls, table = set[int](), set[int](), set[int]()
    for geom in range(model.ngeom):
        material, body = int(model.geom_matid[geom]), int(model.geom_bodyid[geom])
        if material < 0:
            continue
        if model.body(int(model.body_rootid[body])).name.endswith("table"):
            table.add(material)
        elif body == 0:
            (floor if model.geom(geom).name.startswith("floor") else walls).add(material)
    groups = (table, floor | walls) if any(_tables(model)) else (floor, walls)
    names = [[str(model.material(each).name) for each in sorted(group)] for group in groups]
    return names[0], names[1]


def _tables(model: Any) -> list[str]:
    """The names of the tables among a scene's outermost bodies."""
    outermost = [i for i in range(1, model.nbody) if model.body_parentid[i] == 0]
    return [name for i in outermost if (name := str(model.body(i).name)).endswith("table")]


def _with_objects_placed(do: Callable[[], _T]) -> _T:
    """Call `do`, which draws places for a scene's objects, until they all find room; always from the same seed."""
    from robosuite.utils.errors import RandomizationError

    with _numpy_seeded(SCENE_SEED):
        for _ in range(_MOST_DRAWS):
            try:
                return do()
            except RandomizationError:
                continue
    raise RuntimeError(f"LIBERO found no room for the objects of a scene in {_MOST_DRAWS} draws")


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator within the context, and restore its state after it."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
