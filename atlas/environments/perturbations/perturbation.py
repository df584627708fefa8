"""What a perturbation is: one way in which an episode differs from those of training, in five levels."""

from __future__ import annotations

import re
import zlib
from typing import ClassVar, Literal

import numpy as np

from atlas.environments.environment import Environment, EnvironmentSpec
from atlas.environments.scene_variation import AS_IT_IS, Part, SceneVariation
from atlas.types import ActionGroup, Observation

LEVELS = (1, 2, 3, 4, 5)
# The first seven are named as LIBERO-Plus names them, and `task` as LIBERO-PRO does.
Category = Literal[
    "camera_viewpoints",
    "light_conditions",
    "background_textures",
    "objects_layout",
    "robot_initial_states",
    "sensor_noise",
    "language_instructions",
    "control",
    "task",
]


class Perturbation:
    """One episode's perturbation. A subclass says what is different; what it leaves as it is here stays the same.

    `self.rng` depends on the episode's seed and the perturbation's name and not on the level, so that the five levels
    of an episode differ in how much and not in what. All of it is the same for every policy.
    """

    category: ClassVar[Category]
    visual: ClassVar[bool] = False  # whether it changes pictures alone
    needs: ClassVar[frozenset[Part]] = frozenset()  # what of the scene it changes
    every_step: ClassVar[bool] = False  # whether it has to see each step's observation

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        """level: of LEVELS. spec: of the world that the episode is in."""
        self.level, self.rng, self.spec = level, rng, spec

    @classmethod
    def missing(cls, spec: EnvironmentSpec) -> str | None:
        """Why a world cannot have it, such as 'its camera cannot be changed'; None where it can."""
        lacking = sorted(cls.needs - spec.variable)
        return f"its {' and '.join(lacking)} cannot be changed" if lacking else None

    def variation(self) -> SceneVariation:
        """The scene at the start of the episode."""
        return AS_IT_IS

    def begin(self, env: Environment) -> None:
        """The episode has begun, and nothing has been seen of it yet."""

    def see(self, observation: Observation) -> Observation:
        """What is shown to the policy instead of this observation; those of an episode come in their order."""
        return observation

    def act(self, action: np.ndarray) -> np.ndarray:
        """The action [A] that is executed instead of this one; those of an episode come in their order."""
        return action


class InstructionPerturbation(Perturbation):
    """One that says the task in other words."""

    category = "language_instructions"

    @classmethod
    def reworded(cls, instruction: str, level: int, rng: np.random.Generator) -> str | None:
        """The other words; None where it knows none for this instruction."""
        raise NotImplementedError

    @classmethod
    def missing(cls, spec: EnvironmentSpec) -> str | None:
        for instruction in spec.instructions:
            if cls.reworded(instruction, 1, np.random.default_rng(0)) is None:
                return f"it has an instruction for which no other words are known, '{instruction}'"
        return None

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._seed = int(rng.integers(2**32))

    def see(self, observation: Observation) -> Observation:
        said = self.reworded(observation.instruction, self.level, np.random.default_rng(self._seed))
        assert said is not None, observation.instruction
        return Observation(observation.images, observation.proprio, said)


def perturbation_rng(name: str, seed: int) -> np.random.Generator:
    """The random numbers of an episode's perturbation: a function of its name and the episode's seed."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def standing_still(groups: tuple[ActionGroup, ...]) -> np.ndarray:
    """The action [A] that moves nothing and opens the grippers, in a space of changes and velocities."""
    return np.array([group.open if group.kind == "gripper" else 0.0 for group in groups for _ in group.names])


def words_of(instruction: str) -> list[str]:
    return re.findall(r"\S+", instruction)
