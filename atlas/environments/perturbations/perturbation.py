"""The contract of a perturbation: one way in which an episode differs from those of training, in five levels."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from atlas.environments.environment import Environment, EnvironmentSpec
from atlas.environments.scene_variation import AS_IT_IS, Part, SceneVariation
from atlas.types import ActionGroup, Observation

LEVELS = (1, 2, 3, 4, 5)
# The first seven have LIBERO-Plus's names, and `task` has LIBERO-PRO's.
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
    """One episode's perturbation. A subclass overrides the methods for what it changes; by default nothing changes.

    `self.rng` depends on the episode's seed and the perturbation's name but not on the level, so that an episode's five
    levels differ in strength and not in kind. Every policy gets the same perturbations.
    """

    category: ClassVar[Category]
    visual: ClassVar[bool] = False  # whether it changes only images
    needs: ClassVar[frozenset[Part]] = frozenset()  # the parts of the scene that it changes
    every_step: ClassVar[bool] = False  # whether it must see the observation of every step

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        """level: one of LEVELS. spec: of the episode's world."""
        self.level, self.rng, self.spec = level, rng, spec

    @classmethod
    def missing(cls, spec: EnvironmentSpec) -> str | None:
        """Why a world does not support it, such as 'its camera cannot be changed'; None where it does."""
        lacking = sorted(cls.needs - spec.variable)
        return f"its {' and '.join(lacking)} cannot be changed" if lacking else None

    def variation(self) -> SceneVariation:
        """The scene at the start of the episode."""
        return AS_IT_IS

    def begin(self, env: Environment) -> None:
        """Called when the episode has begun, before the first observation."""

    def see(self, observation: Observation) -> Observation:
        """Return what the policy sees instead of this observation. Called in the order of an episode's observations."""
        return observation

    def act(self, action: np.ndarray) -> np.ndarray:
        """The action [A] that is executed instead of this one. Called in the order of the episode's actions."""
        return action


class InstructionPerturbation(Perturbation):
    """A perturbation that states the task in other words."""

    category = "language_instructions"

    @classmethod
    def reworded(cls, instruction: str, level: int, rng: np.random.Generator) -> str | None:
        """The instruction in other words; None where it knows none."""
        raise NotImplementedError

    @classmethod
    def missing(cls, spec: EnvironmentSpec) -> str | None:
        for instruction in spec.instructions:
            if cls.reworded(instruction, 1, np.random.default_rng(0)) is None:
                return f"no other words are known for its instruction '{instruction}'"
        return None

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._seed = int(rng.integers(2**32))

    def see(self, observation: Observation) -> Observation:
        reworded = self.reworded(observation.instruction, self.level, np.random.default_rng(self._seed))
        assert reworded is not None, observation.instruction
        return replace(observation, instruction=reworded)


def perturbation_rng(name: str, seed: int) -> np.random.Generator:
    """The random numbers of an episode's perturbation, a function of its name and the episode's seed."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def standing_still(groups: tuple[ActionGroup, ...]) -> np.ndarray:
    """The action [A] that moves nothing and opens the grippers, in a space of deltas and velocities."""
    return np.array([group.open if group.kind == "gripper" else 0.0 for group in groups for _ in group.names])


def words_of(instruction: str) -> list[str]:
    return re.findall(r"\S+", instruction)
