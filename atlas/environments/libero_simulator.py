"""The scene of one LIBERO task, simulated by robosuite: states, actions, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from atlas.environments.libero_package import LiberoTask
from atlas.errors import InputError

_T = TypeVar("_T")

CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}  # our name: robosuite's
# LIBERO draws where its cabinets and stoves stand with numpy's global generator at each reset, and its states do not
# hold it. Drawn anew with this seed each time, a task has the same scene in all episodes, and a state says all.
SCENE_SEED = 0
SETTLE_STEPS = 10  # of LIBERO's protocol: objects of a start may hang a little above what they stand on
SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_MOST_DRAWS = 20
_COLLISION_GROUP = 0  # shapes that are felt and not seen


class LiberoSimulator:
    """A task's scene. Making it takes seconds; afterwards each episode begins within milliseconds.

    LIBERO's package must have been imported, by `load_package`. Raises InputError where a part of the scene is missing.
    """

    def __init__(self, task: LiberoTask, image_size: int) -> None:
        from libero.libero.envs.env_wrapper import ControlEnv

        self._size = image_size
        # The package is left with scene, physics, control and goal. Its reset makes the scene anew each time, which
        # takes as long as making it the first time; and its pictures are rendered in each step, whoever needs them.
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
                f"The task '{task.instruction}' of {task.suite} needs {error.filename}, which is not there; fetch "
                "LIBERO's meshes and textures again, or install hf-libero again."
            ) from None
        self._env = made.env
        self._env._observables.clear()  # read below, once a step instead of once a physics step
        self._robot = self._env.robots[0]
        self._model: Any = self._env.sim.model._model
        self._data: Any = self._env.sim.data._data
        self._renderers: dict[int, Any] = {}
        self._fingers = self._robot._ref_gripper_joint_pos_indexes
        self._finger_motors = [self._env.sim.model.actuator_name2id(name) for name in self._robot.gripper.actuators]

    # ---- episodes ----------------------------------------------------------------------------------------

    def begin(self, start: np.ndarray) -> None:
        """As LIBERO's evaluations begin: the scene is reset, put into a start [D], and settles."""
        self._reset()
        self._put(start)
        for _ in range(SETTLE_STEPS):
            self._env.step(SETTLE_ACTION)

    def begin_at(self, state: np.ndarray) -> None:
        """Begin in exactly this state [D], as a recording does."""
        self._reset()
        self.restore(state)

    def act(self, action: np.ndarray) -> tuple[float, bool]:
        """Apply one action [7]; returns the reward, which is 1 on success, and whether the goal is reached."""
        _, reward, success, _ = self._env.step(np.clip(np.asarray(action, np.float64), -1.0, 1.0))
        return float(reward), bool(success)

    def state(self) -> np.ndarray:
        """Time, joint positions and joint velocities: float64 [D], robosuite's flattened form."""
        return np.array(self._env.sim.get_state().flatten())

    def restore(self, state: np.ndarray) -> None:
        """Put the scene into a state [D]; arm and gripper are held where they are from there on."""
        self._put(state)
        controller = self._robot.controller
        controller.update(force=True)
        controller.reset_goal()
        # The gripper's motion is ramped, and the ramp's place is in no state: the fingers tell it.
        low, high = self._model.actuator_ctrlrange[self._finger_motors].T
        at = (self._data.qpos[self._fingers] - low) / (high - low)
        self._robot.gripper.current_action = np.clip(2 * at - 1, -1.0, 1.0)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._env.close()

    # ---- what is seen ------------------------------------------------------------------------------------

    def images(self) -> dict[str, np.ndarray]:
        """{our camera's name: uint8 [size, size, 3]}, upright."""
        return {name: self._render(camera, self._size) for name, camera in CAMERAS.items()}

    def picture(self, size: int) -> np.ndarray:
        """What `agentview` shows: uint8 [size, size, 3]."""
        return self._render(CAMERAS["agentview"], size)

    def proprio(self) -> np.ndarray:
        """End-effector position (m), its orientation as axis-angle (rad), the two finger positions (m): float32 [8]."""
        from robosuite.utils import transform_utils

        position = self._data.site_xpos[self._robot.eef_site_id]
        w, x, y, z = self._env.sim.data.get_body_xquat(self._robot.robot_model.eef_name)
        rotation = transform_utils.quat2axisangle(np.array([x, y, z, w]))
        return np.concatenate([position, rotation, self._data.qpos[self._fingers]]).astype(np.float32)

    def positions(self) -> dict[str, np.ndarray]:
        """{name: float64 [3]} of the hand, its fingers, and the objects that can be moved; in metres."""
        pads = self._robot.gripper.important_geoms
        fingers = {
            f"{side} finger": np.array(self._data.geom(pads[f"{side}_fingerpad"][0]).xpos) for side in ("left", "right")
        }
        bodies = self._env.obj_body_id
        objects = {name: np.array(self._data.xpos[bodies[name]]) for name in self._env.objects_dict}
        return {"hand": np.array(self._data.site_xpos[self._robot.eef_site_id])} | fingers | objects

    @property
    def model_xml(self) -> str:
        """The MuJoCo model as XML."""
        return str(self._env.sim.model.get_xml())

    # ---- inside ------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        _with_objects_placed(self._env.reset)
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)  # robosuite keeps the last episode's

    def _put(self, state: np.ndarray) -> None:
        self._env.sim.set_state_from_flattened(np.asarray(state, np.float64))
        self._env.sim.forward()
        self._env._post_process()  # a stove glows where it is on

    def _render(self, camera: str, size: int) -> np.ndarray:
        """With shadows, reflections and smooth edges: LIBERO's demonstrations show them."""
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


def _with_objects_placed(do: Callable[[], _T]) -> _T:
    """Do what draws places for all things of a scene, again where they found no room; each time with the same luck."""
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
    """Numpy's global generator seeded within the block, and as it was after it."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
