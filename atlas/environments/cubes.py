"""The demonstration world: two cubes on a table, and an instruction that says which one to lift.

robosuite's `Stack` arena with a Panda arm. Engine, controller, cameras, proprio and action convention are LIBERO's, so
that code for this world needs no special case for LIBERO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas.environments.camera_renderer import CameraRenderer, coarsen
from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.environments.model_variation import ModelVariation
from atlas.environments.rendering import failure_explained, prepare_rendering, quiet_robosuite
from atlas.environments.robot_contacts import RobotContacts
from atlas.environments.scene_variation import AS_IT_IS, SceneVariation
from atlas.errors import InputError
from atlas.types import ActionSpec, Observation

INSTRUCTIONS = ("pick up the red cube", "pick up the green cube")
CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}  # our name: robosuite's
AREA_HALF_SIZE_M = 0.10  # cube centres lie in a square of 20 x 20 cm around the table's centre
MIN_DISTANCE_M = 0.08  # between the cubes' centres
LIFT_HEIGHT_M = 0.04  # above where the cube lay
HORIZON = 200
SETTLE_STEPS = 2  # the cubes start a hair above the table
ARM_NOISE_RAD = 0.02  # standard deviation of the arm's starting joint angles
PUSHED_M = 0.05  # along the table, for a variation of the scene whose goal is a push
TOUCHED_M = 0.01  # a cube that has moved this far counts as touched, where the goal is to touch none
OBJECTS = ("red cube", "green cube")
# How fine the pedestal's and the arm's shapes are drawn, m; a pixel of 64 is 13 mm wide there. The hand stays as it is.
DRAWN_M = {"mount0_": 0.012, "robot0_": 0.005}
_TABLE, _BACKGROUND = ("table_ceramic",), ("floorplane", "walls_mat")  # materials


def cubes_spec(image_size: int) -> EnvironmentSpec:
    """Describe what this world offers, without starting it."""
    return EnvironmentSpec(
        name="cubes",
        instructions=INSTRUCTIONS,
        cameras=tuple(CAMERAS),
        image_size=(image_size, image_size),
        proprio_dim=8,
        horizon=HORIZON,
        action_spec=ActionSpec(),
        action_bounds=((-1.0,) * 7, (1.0,) * 7),
        object_numbers=10,
        variable=frozenset(
            {"camera", "light", "table", "background", "distractors", "placement", "start_pose", "goal"}
        ),
    )


class CubesEnvironment:
    """Two cubes at random places and yaws; success is the named cube lifted by 4 cm.

    Lifting the other cube ends the episode as a failure. Reward 1 on success, else 0. Proprio [8]: end-effector
    position (m), its orientation as axis-angle (rad), the two finger positions (m), all in the world's frame.
    """

    def __init__(self, image_size: int = 128) -> None:
        prepare_rendering()
        quiet_robosuite()
        try:
            with failure_explained():
                import robosuite
                from robosuite.controllers import load_controller_config
        except ModuleNotFoundError as error:
            raise InputError(
                f"The environment 'cubes' needs the simulator ({error.name} is missing): pip install 'atlas-vla[sim]'"
            ) from None

        self.spec = cubes_spec(image_size)
        # robosuite does physics and control only. Rendering happens here, when an observation is requested.
        self._env = robosuite.make(
            "Stack",
            robots="Panda",
            controller_configs=load_controller_config(default_controller="OSC_POSE"),
            initialization_noise=None,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            control_freq=20,
            hard_reset=False,
            ignore_done=True,
        )
        self._env._observables.clear()  # observations are read below, once per step instead of once per physics step
        self._env.reward = lambda action=None: 0.0  # `step` computes the reward
        self._robot = self._env.robots[0]
        self._home = np.array(self._robot.init_qpos)
        self._model: Any = self._env.sim.model._model
        self._data: Any = self._env.sim.data._data
        self._cubes = [(self._env.cubeA, self._env.cubeA_body_id), (self._env.cubeB, self._env.cubeB_body_id)]
        names = {body: name for name, (_, body) in zip(OBJECTS, self._cubes, strict=True)}
        self._contacts = RobotContacts(self._model, self._data, "robot0_base", names, "table")

        coarsen(self._model, DRAWN_M)
        self._renderer = CameraRenderer(self._model, self._data, image_size)
        self._picture: CameraRenderer | None = None
        self._table = np.array(self._env.table_offset)  # the centre of its top, m
        self._variations = ModelVariation(self._model, self._table, _TABLE, _BACKGROUND)
        self._variation = self._applied = AS_IT_IS

        self._instruction = INSTRUCTIONS[0]
        self._target = 0
        self._lying = np.zeros((2, 3))  # where the cubes' centres were at the start
        self._steps = 0

    # ---- the contract ------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        """See `Simulator.reset`."""
        self.begin(seed=seed, instruction=instruction, init_state=init_state)
        return self.observe()

    def begin(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> str:
        """See `StateSimulator.begin`."""
        assert (seed is None) != (init_state is None), "give one of seed and init_state"
        if instruction is not None and instruction not in INSTRUCTIONS:
            raise InputError(f"The environment 'cubes' has no instruction '{instruction}'; it has: {INSTRUCTIONS}.")
        rng = np.random.default_rng(seed if seed is not None else 0)
        self._robot.init_qpos = self._home + rng.normal(0.0, ARM_NOISE_RAD, self._home.shape)
        if self._variation.start_pose is not None:
            self._robot.init_qpos = self._robot.init_qpos + np.array(self._variation.start_pose)
        self._apply_variation()
        self._env.reset()
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)  # robosuite keeps the last episode's
        self._target = int(rng.integers(2)) if instruction is None else INSTRUCTIONS.index(instruction)
        self._instruction = INSTRUCTIONS[self._target]
        if init_state is None:
            self._place_cubes(rng)
            for _ in range(SETTLE_STEPS):
                self._env.step(np.zeros(7))
            self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)
        else:
            self._env.sim.set_state_from_flattened(np.asarray(init_state, np.float64))
            self._env.sim.forward()
        self._restart_controller()
        self._lying = np.array([self.cube_pose(i)[0] for i in range(2)])
        self._steps = 0
        return self._instruction

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """Apply one action [7], clipped to [-1, 1] as the controller does."""
        clipped = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self._env.step(clipped)
        self._steps += 1
        success, terminated = self._judge()
        return StepResult(
            observation=self.observe() if observe else None,
            reward=float(success),
            terminated=terminated,
            truncated=not terminated and self._steps >= HORIZON,
            success=success,
            executed=clipped,
        )

    def observe(self) -> Observation:
        """See `Simulator.observe`."""
        images = {name: self._renderer.render(camera) for name, camera in CAMERAS.items()}
        return Observation(images=images, proprio=self.proprio(), instruction=self._instruction)

    def get_state(self) -> np.ndarray:
        """Time, joint positions and joint velocities: float64 [D], robosuite's flattened form."""
        return np.array(self._env.sim.get_state().flatten())

    def set_state(self, state: np.ndarray) -> None:
        """Put the simulator into a recorded state, and restart the controller from there."""
        self._env.sim.set_state_from_flattened(np.asarray(state, np.float64))
        self._env.sim.forward()
        self._restart_controller()

    def positions(self) -> dict[str, np.ndarray]:
        """See `Simulator.positions`."""
        pads = self._robot.gripper.important_geoms
        fingers = {
            f"{side} finger": np.array(self._data.geom(pads[f"{side}_fingerpad"][0]).xpos) for side in ("left", "right")
        }
        return {
            "hand": self.hand_pose()[0],
            OBJECTS[0]: self.cube_pose(0)[0],
            OBJECTS[1]: self.cube_pose(1)[0],
        } | fingers

    def picture(self, size: int) -> np.ndarray:
        """The table as `agentview` sees it."""
        if self._picture is None or self._picture.size != size:
            if self._picture is not None:
                self._picture.close()
            self._picture = CameraRenderer(self._model, self._data, size)
            self._show_variation(self._picture, ())
        return self._picture.render("agentview")

    def close(self) -> None:
        self._renderer.close()
        if self._picture is not None:
            self._picture.close()
        self._env.close()

    def vary(self, variation: SceneVariation) -> None:
        """See `VariableScene.vary`."""
        self._variation = variation

    def target_object(self) -> str:
        """See `NamesTarget.target_object`."""
        return OBJECTS[self._target]

    def contact_forces(self) -> dict[str, float]:
        """See `FeelsContacts.contact_forces`."""
        return self._contacts.forces()

    # ---- for the scripted expert and the recorder --------------------------------------------------------

    @property
    def target(self) -> int:
        """The cube to lift: 0 red, 1 green."""
        return self._target

    def cube_pose(self, cube: int) -> tuple[np.ndarray, float]:
        """Centre [3] in metres and yaw in radians of a cube, in the world's frame."""
        body = self._cubes[cube][1]
        rotation = self._data.xmat[body].reshape(3, 3)
        return np.array(self._data.xpos[body]), float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def hand_pose(self) -> tuple[np.ndarray, float]:
        """Grip site [3] in metres and its yaw in radians, in the world's frame."""
        site = self._robot.eef_site_id
        rotation = self._data.site_xmat[site].reshape(3, 3)
        return np.array(self._data.site_xpos[site]), float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def proprio(self) -> np.ndarray:
        """float32 [8], see the class."""
        from robosuite.utils import transform_utils

        position = self._data.site_xpos[self._robot.eef_site_id]
        w, x, y, z = self._env.sim.data.get_body_xquat(self._robot.robot_model.eef_name)
        rotation = transform_utils.quat2axisangle(np.array([x, y, z, w]))
        fingers = self._data.qpos[self._robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([position, rotation, fingers]).astype(np.float32)

    def object_state(self) -> np.ndarray:
        """See `StateSimulator.object_state`, float32 [10]: for the red and the green cube, its centre (m) and its yaw,
        both relative to the hand; the yaw as cosine and sine of four times the angle, since a cube looks the same after
        a quarter turn."""
        hand, hand_yaw = self.hand_pose()
        numbers = []
        for cube in range(2):
            centre, yaw = self.cube_pose(cube)
            turned = 4 * (yaw - hand_yaw)
            numbers += [*(centre - hand), np.cos(turned), np.sin(turned)]
        return np.array(numbers, np.float32)

    def joint_positions(self) -> np.ndarray:
        """The arm's joint angles, float64 [7], in radians."""
        return np.array(self._robot._joint_positions)

    @property
    def model_xml(self) -> str:
        """The MuJoCo model as XML."""
        return str(self._env.sim.model.get_xml())

    # ---- inside ------------------------------------------------------------------------------------------

    def _judge(self) -> tuple[bool, bool]:
        """(success, terminated) of the current state."""
        moved = np.array([self.cube_pose(i)[0] for i in range(2)]) - self._lying  # [2, 3]
        lifted = moved[:, 2] > LIFT_HEIGHT_M
        if self._variation.goal == "push":
            success = not lifted.any() and float(np.linalg.norm(moved[self._target, :2])) > PUSHED_M
            return success, success or bool(lifted.any())
        if self._variation.goal == "leave":
            touched = bool((np.linalg.norm(moved, axis=1) > TOUCHED_M).any())
            return not touched and self._steps >= HORIZON, touched
        return bool(lifted[self._target]), bool(lifted.any())

    def _apply_variation(self) -> None:
        if self._variation == self._applied:
            return
        textures = self._variations.apply(self._variation)
        self._applied = self._variation
        for renderer in filter(None, (self._renderer, self._picture)):
            self._show_variation(renderer, textures)

    def _show_variation(self, renderer: CameraRenderer, textures: Sequence[int]) -> None:
        light = self._applied.light
        renderer.show(self._applied.distractors, self._table, light is not None and light.shadows, textures)

    def _place_cubes(self, rng: np.random.Generator) -> None:
        inner, outer = self._variation.placement or (0.0, AREA_HALF_SIZE_M)
        while True:
            centres = rng.uniform(-outer, outer, (2, 2))
            beyond = np.abs(centres).max(axis=1) >= inner
            if np.linalg.norm(centres[0] - centres[1]) >= MIN_DISTANCE_M and beyond.all():
                break
        table = self._env.table_offset
        for (cube, _), centre in zip(self._cubes, centres, strict=True):
            yaw = rng.uniform(-np.pi, np.pi)
            position = [*centre + table[:2], table[2] + float(cube.top_offset[2]) + 0.001]
            orientation = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]  # w, x, y, z
            self._env.sim.data.set_joint_qpos(cube.joints[0], np.array(position + orientation))
        self._env.sim.forward()

    def _restart_controller(self) -> None:
        controller = self._robot.controller
        controller.update(force=True)
        controller.reset_goal()
