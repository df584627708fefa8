"""LIBERO's suites of tasks as environments, through the package hf-libero.

An environment is a suite (`libero_object`), or all of them (`libero`). Each of its tasks has a scene of its own; the
one of the present task is kept, and another one is made when another instruction is asked for.
"""

from __future__ import annotations

import numpy as np

from atlas.environments.base import EnvironmentSpec, StepResult
from atlas.environments.libero_package import HORIZONS, LiberoTask, load_package, read_starts, tasks_of
from atlas.environments.libero_simulator import CAMERAS, LiberoSimulator
from atlas.environments.rendering import prepare_rendering, quiet_robosuite
from atlas.errors import InputError, did_you_mean
from atlas.types import Observation


def libero_spec(name: str, image_size: int) -> EnvironmentSpec:
    """What a suite offers, without importing the simulator. Raises InputError where the package is not installed."""
    return EnvironmentSpec(
        name=name,
        instructions=tuple(tasks_of(name)),
        cameras=tuple(CAMERAS),
        image_size=(image_size, image_size),
        proprio_dim=8,
        horizon=HORIZONS[name],
    )


class LiberoEnvironment:
    """The tasks of a suite. Reward 1 on success, which ends an episode; proprio [8] as in LIBERO's demonstrations:
    end-effector position (m), its orientation as axis-angle (rad), the two finger positions (m).

    A seed chooses one of the task's own starts, in turn: `atlas eval` with 50 episodes an instruction sees each of
    LIBERO's 50. Every reset puts cabinets and stoves where they were before, see `SCENE_SEED`.
    """

    def __init__(self, name: str, image_size: int = 128) -> None:
        """Raises InputError where a package, or LIBERO's meshes and textures, are missing."""
        self.spec = libero_spec(name, image_size)
        self._tasks = tasks_of(name)
        prepare_rendering()
        quiet_robosuite()
        load_package(name)
        self._task: LiberoTask | None = None
        self._simulator: LiberoSimulator | None = None
        self._steps = 0

    # ---- the contract ------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        """Begin an episode; see `Environment.reset`. With a seed the objects settle for half a second, which counts
        for no step; an `init_state` is begun with as it is.

        Raises InputError for an instruction that the suite lacks, or a state of another scene.
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
        return self._observe()

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """Apply one action [7], clipped to [-1, 1] as the controller does."""
        reward, success = self._scene.act(action)
        self._steps += 1
        return StepResult(
            observation=self._observe() if observe else None,
            reward=reward,
            terminated=success,
            truncated=not success and self._steps >= self.spec.horizon,
            success=success,
        )

    def get_state(self) -> np.ndarray:
        """Time, joint positions and joint velocities, as LIBERO records them: float64 [D]."""
        return self._scene.state()

    def set_state(self, state: np.ndarray, observe: bool = True) -> Observation | None:
        """Put the scene into a recorded state; the controller starts anew from there."""
        self._scene.restore(state)
        return self._observe() if observe else None

    def positions(self) -> dict[str, np.ndarray]:
        """See `Environment.positions`. Objects have their names in LIBERO's task, such as `alphabet_soup_1`."""
        return self._scene.positions()

    def picture(self, size: int) -> np.ndarray:
        """The scene as `agentview` sees it."""
        return self._scene.picture(size)

    def close(self) -> None:
        if self._simulator is not None:
            self._simulator.close()
        self._simulator, self._task = None, None

    @property
    def model_xml(self) -> str:
        """The MuJoCo model of the present task's scene, as XML."""
        return self._scene.model_xml

    # ---- inside ------------------------------------------------------------------------------------------

    @property
    def _scene(self) -> LiberoSimulator:
        assert self._simulator is not None, "reset comes first"
        return self._simulator

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
        """Evaluation goes through the instructions in turn, so the rounds are what counts through a task's starts."""
        tasks, rounds = self._tasks[instruction], seed // len(self._tasks)
        task = tasks[rounds % len(tasks)]
        starts = read_starts(task)
        return task, starts[rounds // len(tasks) % len(starts)]

    def _task_with(self, state: np.ndarray, instruction: str) -> LiberoTask:
        """The instruction's task that a state is of: of several, the one with the start that is most like it."""
        tasks = [task for task in self._tasks[instruction] if read_starts(task).shape[1:] == state.shape]
        if not tasks:
            sizes = sorted({read_starts(task).shape[1] for task in self._tasks[instruction]})
            raise InputError(
                f"A state of {state.size} numbers is none of the task '{instruction}' of '{self.spec.name}', whose "
                f"scene has {' or '.join(map(str, sizes))}."
            )
        return min(tasks, key=lambda task: float(np.abs(read_starts(task) - state)[:, 1:].sum(axis=1).min()))

    def _enter(self, task: LiberoTask) -> LiberoSimulator:
        if self._simulator is None or task != self._task:
            self.close()
            self._simulator = LiberoSimulator(task, self.spec.image_size[0])
            self._task = task
        return self._simulator

    def _observe(self) -> Observation:
        assert self._task is not None
        return Observation(self._scene.images(), self._scene.proprio(), self._task.instruction)
