"""The contract between policies and worlds: simulators, real robots and sockets are adapters of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from atlas.environments.scene_variation import Part
from atlas.types import ActionSpec, Observation


@dataclass(frozen=True)
class EnvironmentSpec:
    """What an environment offers; the same for all its episodes."""

    name: str
    instructions: tuple[str, ...]
    cameras: tuple[str, ...]
    image_size: tuple[int, int]  # height, width
    proprio_dim: int
    horizon: int  # steps after which an episode is truncated
    action_spec: ActionSpec = field(default_factory=ActionSpec)
    variable: frozenset[Part] = frozenset()  # what of its scene perturbations may change, see VariableScene

    def known(self, instruction: str) -> str:
        """The instruction, where the environment has it, else the first of those that it has."""
        return instruction if instruction in self.instructions else self.instructions[0]


@dataclass
class StepResult:
    """What one step gives. `observation` is None where the caller said that it needs none."""

    observation: Observation | None
    reward: float
    terminated: bool  # the task is over: what comes after has no value
    truncated: bool  # the time is up
    success: bool
    executed: np.ndarray | None = None  # the action [A] as it was clipped; None where it was taken as it was given

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


class Expert(Protocol):
    """Knows how to go on in an environment, by what no policy sees; it may take over in any state."""

    def act(self) -> np.ndarray:
        """The next action [A], in the ActionSpec's units."""
        ...


class Environment(Protocol):
    """A world with episodes: all that a real robot has. Images are upright; an adapter turns its source's orientation
    into that."""

    spec: EnvironmentSpec

    def reset(self, *, seed: int | None = None, instruction: str | None = None) -> Observation:
        """Begin an episode. In a simulator its start is a pure function of (seed, instruction). Without `instruction`
        the seed picks one. Raises InputError for an instruction that the environment lacks."""
        ...

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """Apply one action [A] in the ActionSpec's units. `observe=False` saves the rendering."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Simulator(Environment, Protocol):
    """An environment that says where everything is and can be put back into any state that it was in."""

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        """See `Environment.reset`. With `init_state` instead of a seed (what `get_state` gave at a start) it begins in
        that very state. Raises InputError for a state of another world."""
        ...

    def observe(self) -> Observation:
        """What the present state looks like."""
        ...

    def get_state(self) -> np.ndarray:
        """The simulator's state, float64 [D]."""
        ...

    def set_state(self, state: np.ndarray) -> None:
        """Put it into a state [D] of `get_state`; it stays in the episode that it is in."""
        ...

    def positions(self) -> dict[str, np.ndarray]:
        """Where the hand, its fingers and the objects are: {name: float64 [3]}, in metres, in the world's frame; the
        hand's is called `hand`."""
        ...

    def picture(self, size: int) -> np.ndarray:
        """The present state as people look at it: uint8 [size, size, 3]."""
        ...


@runtime_checkable
class NamesTarget(Protocol):
    """An environment that says which of its objects the present task is about."""

    def target_object(self) -> str | None:
        """Its name in `Simulator.positions`; None where the task is about none, or about several."""
        ...
