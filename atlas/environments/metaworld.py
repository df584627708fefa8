"""Meta-World's tasks as environments, through the package metaworld, version 3.

An environment is a task (`metaworld-drawer-open`) or a set of them (`metaworld-mt10`, `metaworld-mt50`). Each task has
its own scene; the environment keeps those of the last few tasks.
"""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from atlas.environments.camera_renderer import CameraRenderer
from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.environments.installed_worlds import check_installed, pins_explained
from atlas.environments.metaworld_tasks import TASKS, tasks_in, tiers_of
from atlas.environments.model_variation import ModelVariation
from atlas.environments.rendering import failure_explained, prepare_rendering
from atlas.environments.robot_contacts import RobotContacts
from atlas.environments.scene_variation import AS_IT_IS, SceneVariation
from atlas.errors import InputError, did_you_mean
from atlas.types import ActionGroup, ActionSpec, Observation

CAMERAS = ("corner", "gripperPOV")  # one shows the table and what stands on it, the other what lies under the hand
_TURNED = ("corner", "corner2", "corner3", "corner4")  # these hang upside down in the scenes
_PICTURE = "corner"
HORIZON = 500  # the benchmark's
ACTIONS = ActionSpec(
    (
        ActionGroup("position", ("dx", "dy", "dz"), unit=0.01, delta=True),
        ActionGroup("gripper", ("gripper",), continuous=True),
    ),
    control_hz=80.0,
)
_PROPRIO = 4
_NOISE, _NOISE_KEPT = 0.12, 0.8  # of demonstrations: a step's standard deviation, and the share that the next keeps
_ROBOT, _SCENE, _WALL = "base", ("mocap", "tablelink", "RetainingWall"), "wall"  # the scenes' outermost bodies
_TABLE, _BACKGROUND = ("table_wood", "table_col"), ("basic_floor", "wall_metal")  # materials
_TABLE_AT = np.array([0.0, 0.6, 0.0])  # the middle of the table's top, m
_KEPT = 5  # scenes: each takes 50 MB or more, and a third of a second to make


def metaworld_spec(name: str, image_size: int) -> EnvironmentSpec:
    """Describe what a task or a set of tasks offers, without importing the package. Raises InputError where the package
    is not installed or has no such task."""
    tasks = tasks_in(name)
    check_installed(name, "metaworld", "metaworld")
    return EnvironmentSpec(
        name=name,
        instructions=tuple(TASKS[task] for task in tasks),
        cameras=CAMERAS,
        image_size=(image_size, image_size),
        proprio_dim=_PROPRIO,
        horizon=HORIZON,
        action_spec=ACTIONS,
        action_bounds=((-1.0,) * 4, (1.0,) * 4),
        object_numbers=9,
        variable=frozenset({"camera", "light", "table", "background"}),
        tiers=tiers_of(tasks),
    )


class MetaworldEnvironment:
    """Tasks of Meta-World with the Sawyer arm. The reward is the task's own; success ends an episode.

    Proprio [4]: the hand's position (m, in the world's frame), and how far the gripper is open, from 0 to 1. Only the
    scripted policies see the rest of Meta-World's observation, the places of objects and goals.
    """

    def __init__(self, name: str, image_size: int = 128) -> None:
        """Raises InputError, see `metaworld_spec`."""
        self.spec = metaworld_spec(name, image_size)
        self._tasks = {TASKS[task]: task for task in tasks_in(name)}
        prepare_rendering()
        self._scenes: OrderedDict[str, MetaworldScene] = OrderedDict()
        self._instruction = self.spec.instructions[0]
        self._variation = AS_IT_IS
        self._steps = 0

    # ---- the contract ------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        """See `Simulator.reset`. Raises InputError for an unknown instruction, and for a state of another task."""
        self.begin(seed=seed, instruction=instruction, init_state=init_state)
        return self.observe()

    def begin(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> str:
        """See `StateSimulator.begin`. Raises InputError as `reset` does."""
        assert (seed is None) != (init_state is None), "give one of seed and init_state"
        if instruction is None:
            known = self.spec.instructions
            instruction = self._instruction if seed is None else known[seed % len(known)]
        if instruction not in self._tasks:
            raise InputError(
                f"The environment '{self.spec.name}' has no task '{instruction}'."
                f"{did_you_mean(instruction, self._tasks)} It has: {'; '.join(self._tasks)}."
            )
        self._instruction = instruction
        scene = self._entered(self._tasks[instruction])
        if seed is not None:
            scene.begin(seed)
        else:
            scene.begin_at(np.asarray(init_state, np.float64))
        self._steps = 0
        return self._instruction

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """Apply one action [4], clipped to [-1, 1]."""
        clipped = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        reward, success = self.scene.act(clipped)
        self._steps += 1
        return StepResult(
            observation=self.observe() if observe else None,
            reward=reward,
            terminated=success,
            truncated=not success and self._steps >= HORIZON,
            success=success,
            executed=clipped,
        )

    def observe(self) -> Observation:
        """See `Simulator.observe`."""
        return Observation(self.scene.images(), self.scene.proprio(), self._instruction)

    def proprio(self) -> np.ndarray:
        """float32 [4], see the class."""
        return self.scene.proprio()

    def object_state(self) -> np.ndarray:
        """See `StateSimulator.object_state`, float32 [9], in metres from the hand: the task's object, its second object
        (zeros where it has only one), and its goal."""
        return self.scene.object_state()

    def get_state(self) -> np.ndarray:
        """The places drawn for the task's objects, then MuJoCo's integration state: float64 [D]."""
        return self.scene.state()

    def set_state(self, state: np.ndarray) -> None:
        """See `Simulator.set_state`."""
        self.scene.restore(np.asarray(state, np.float64))

    def positions(self) -> dict[str, np.ndarray]:
        """See `Simulator.positions`; the task's objects are named `object` and `second object`."""
        return self.scene.positions()

    def contact_forces(self) -> dict[str, float]:
        """See `FeelsContacts.contact_forces`; things have the names of Meta-World's scene, such as `drawer`."""
        return self.scene.contact_forces()

    def task_things(self) -> frozenset[str]:
        """See `NamesTaskThings.task_things`: all that stands on the table but a wall; nothing in the reach tasks."""
        return self.scene.task_things()

    def vary(self, variation: SceneVariation) -> None:
        """See `VariableScene.vary`."""
        self._variation = variation

    def picture(self, size: int) -> np.ndarray:
        """The image of the camera `corner`."""
        return self.scene.render(_PICTURE, size)

    def close(self) -> None:
        for scene in self._scenes.values():
            scene.close()
        self._scenes.clear()

    @property
    def scene(self) -> MetaworldScene:
        """The current task's scene."""
        return self._scenes[self._tasks[self._instruction]]

    def _entered(self, task: str) -> MetaworldScene:
        if task not in self._scenes:
            while len(self._scenes) >= _KEPT:
                self._scenes.popitem(last=False)[1].close()
            self._scenes[task] = MetaworldScene(task, self.spec.image_size[0])
        self._scenes.move_to_end(task)
        self._scenes[task].vary(self._variation)
        return self._scenes[task]


class MetaworldScene:
    """A task's scene, and the episode in it."""

    def __init__(self, task: str, image_size: int) -> None:
        self.task, self._size = task, image_size
        with failure_explained(), pins_explained(f"metaworld-{task}", "metaworld"):
            import mujoco
            from metaworld import env_dict
            from metaworld.types import Task

            self._mujoco, self._new_task = mujoco, Task
            self._class = env_dict.ALL_V3_ENVIRONMENTS[f"{task}-v3"]
            self._env = self._class()
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        model = self._env.model
        names = {i: str(model.body(i).name) for i in range(1, model.nbody) if model.body_parentid[i] == 0}
        names = {body: name for body, name in names.items() if name and name not in (_ROBOT, *_SCENE)}
        self._things = frozenset(names.values())
        self._contacts = RobotContacts(model, self._env.data, _ROBOT, names, "table")
        self._renderers: dict[int, CameraRenderer] = {}
        there = {str(model.material(i).name) for i in range(model.nmat)}
        parts = ([name for name in names if name in there] for names in (_TABLE, _BACKGROUND))
        self._variations, self._variation = ModelVariation(model, _TABLE_AT, *parts), AS_IT_IS
        self.observed = np.zeros(0)  # Meta-World's own observation [39], for its scripted policies

    # ---- episodes ----------------------------------------------------------------------------------------

    def begin(self, seed: int) -> None:
        """Begin with the objects in places that Meta-World draws from a seed."""
        env = self._env
        env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
        env.seed(seed)
        env.reset()  # draws again where objects are too near to each other
        self._place(np.array(env._last_rand_vec, np.float64))

    def begin_at(self, state: np.ndarray) -> None:
        """Begin in exactly this state [D]. Raises InputError for a state of another task."""
        if state.shape != (self._drawn + self._integrated,):
            raise InputError(
                f"A state of {state.size} numbers does not belong to Meta-World's task '{self.task}', whose states "
                f"have {self._drawn + self._integrated}."
            )
        self._place(state[: self._drawn])
        self.restore(state)

    def vary(self, variation: SceneVariation) -> None:
        """Change cameras, lights and surfaces, from the next episode on."""
        if variation == self._variation:
            return
        textures = self._variations.apply(variation)
        self._variation = variation
        for renderer in self._renderers.values():
            self._show_variation(renderer, textures)

    def act(self, action: np.ndarray) -> tuple[float, bool]:
        """Apply one action [4] within [-1, 1]; returns the reward, and whether the task is done."""
        self._env.curr_path_length = 0  # the caller limits the steps
        self.observed, reward, _, _, info = self._env.step(action)
        return float(reward), bool(info["success"])

    def state(self) -> np.ndarray:
        """float64 [D], see `MetaworldEnvironment.get_state`."""
        integrated = np.empty(self._integrated)
        self._mujoco.mj_getState(self._env.model, self._env.data, integrated, self._kind)
        return np.concatenate([self._env._last_rand_vec, integrated])

    def restore(self, state: np.ndarray) -> None:
        """Put MuJoCo into a state [D] of the current episode."""
        env = self._env
        self._mujoco.mj_setState(env.model, env.data, np.ascontiguousarray(state[self._drawn :]), self._kind)
        self._mujoco.mj_forward(env.model, env.data)
        for site in env._target_site_config:
            env._set_pos_site(*site)
        self.observed = np.array(env._get_obs(), np.float64)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._env.close()

    # ---- observations ------------------------------------------------------------------------------------

    def images(self) -> dict[str, np.ndarray]:
        """{camera: uint8 [size, size, 3]}, upright."""
        return {camera: self.render(camera, self._size) for camera in CAMERAS}

    def render(self, camera: str, size: int) -> np.ndarray:
        """uint8 [size, size, 3], upright."""
        if size not in self._renderers:
            self._renderers[size] = CameraRenderer(self._env.model, self._env.data, size, hidden_groups=())
            self._show_variation(self._renderers[size], ())
        image = self._renderers[size].render(camera)
        return np.ascontiguousarray(image[::-1, ::-1]) if camera in _TURNED else image

    def proprio(self) -> np.ndarray:
        """float32 [4], see `MetaworldEnvironment`."""
        return self.observed[:_PROPRIO].astype(np.float32)

    def object_state(self) -> np.ndarray:
        """float32 [9], see `MetaworldEnvironment.object_state`."""
        found, hand = self.positions(), self.observed[:3]
        second = found["second object"] - hand if "second object" in found else np.zeros(3)
        return np.concatenate([found["object"] - hand, second, self.observed[-3:] - hand]).astype(np.float32)

    def positions(self) -> dict[str, np.ndarray]:
        """{name: float64 [3]}, in metres."""
        found = {"hand": np.array(self._env.get_endeff_pos())}
        for side in ("left", "right"):
            found[f"{side} finger"] = np.array(self._env.data.body(f"{side}pad").xpos)
        things = np.asarray(self._env._get_pos_objects(), np.float64).reshape(-1, 3)
        return found | {name: things[i] for i, name in enumerate(("object", "second object")[: len(things)])}

    def contact_forces(self) -> dict[str, float]:
        """{thing that the robot touches: the force, N}; floor, table and the wall around it are `table`."""
        return self._contacts.forces()

    def task_things(self) -> frozenset[str]:
        """See `MetaworldEnvironment.task_things`."""
        return frozenset() if self.task.startswith("reach") else self._things - {_WALL}

    # ---- inside ------------------------------------------------------------------------------------------

    def _show_variation(self, renderer: CameraRenderer, textures: Sequence[int]) -> None:
        light = self._variation.light
        renderer.show((), _TABLE_AT, light is not None and light.shadows, textures)

    @property
    def _drawn(self) -> int:
        """The width of the numbers that give the places of the task's objects."""
        return int(self._env._random_reset_space.low.size)

    @property
    def _integrated(self) -> int:
        return int(self._mujoco.mj_stateSize(self._env.model, self._kind))

    def _place(self, drawn: np.ndarray) -> None:
        values = {"rand_vec": drawn, "env_cls": self._class, "partially_observable": False}
        self._env.set_task(self._new_task(env_name=f"{self.task}-v3", data=pickle.dumps(values)))
        observed, _ = self._env.reset()
        self.observed = np.array(observed, np.float64)


class MetaworldExpert:
    """Meta-World's scripted policy for an environment's current task."""

    def __init__(self, env: MetaworldEnvironment) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._scene = env.scene
        self._policy = ENV_POLICY_MAP[f"{self._scene.task}-v3"]()

    def act(self) -> np.ndarray:
        """See `Expert.act`: float64 [4], within [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Meta-World warns of each clipped action
            action = self._policy.get_action(self._scene.observed)
        return np.clip(np.asarray(action, np.float64), -1.0, 1.0)


class MetaworldDemonstrator:
    """The scripted policy with zero-mean noise on its actions, so that demonstrations show recovery."""

    def __init__(self, env: MetaworldEnvironment, rng: np.random.Generator) -> None:
        self._expert, self._rng = MetaworldExpert(env), rng
        self._drift = np.zeros(3)

    def act(self) -> np.ndarray:
        """See `Expert.act`. The noise is correlated over some steps; the arm would average out independent noise."""
        self._drift = _NOISE_KEPT * self._drift + self._rng.normal(0.0, _NOISE, 3)
        return np.clip(self._expert.act() + np.append(self._drift, 0.0), -1.0, 1.0)
