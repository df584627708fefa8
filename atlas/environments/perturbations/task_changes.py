"""Another task in the same scene: the instruction asks for something that the demonstrations do not show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from atlas.environments.environment import Environment, EnvironmentSpec, NamesTarget, Simulator
from atlas.environments.perturbations.perturbation import Perturbation
from atlas.environments.scene_variation import Goal, SceneVariation
from atlas.types import Observation

_KNOWN = {"red cube": ("red", "green"), "green cube": ("green", "red")}  # {the object: its colour, the other's}
_GOALS: dict[int, Goal] = {4: "push", 5: "leave"}


class OtherTask(Perturbation):
    """The instruction names the object by what it is not (level 1), by its side (2) or by how near it is (3), or asks
    to push it (4) or not to touch it (5).

    Success is that of the new task.
    """

    category, needs = "task", frozenset({"goal"})

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._said = ""

    def variation(self) -> SceneVariation:
        return SceneVariation(goal=_GOALS.get(self.level, "lift"))

    def begin(self, env: Environment) -> None:
        assert isinstance(env, Simulator) and isinstance(env, NamesTarget)
        target = str(env.target_object())
        colour, other = _KNOWN[target]
        places = env.positions()
        here, there = places[target], places[f"{other} cube"]
        self._said = {
            1: f"pick up the cube that is not {other}",
            2: f"pick up the cube on the {'left' if here[1] < there[1] else 'right'}",  # of the scene's camera
            3: f"pick up the cube that is {'closer to' if here[0] < there[0] else 'farther from'} the robot",
            4: f"push the {colour} cube along the table and leave it there",
            5: f"do not touch the {colour} cube, and no other one",
        }[self.level]

    def see(self, observation: Observation) -> Observation:
        return replace(observation, instruction=self._said)
