"""The contract between policies and worlds: simulators, real robots and sockets are adapters of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

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
    # Whether `set_state` can put it back into any state that it was in. A simulator can, and is filmed from its states
    # when an episode is over; a real robot cannot, and is filmed while it acts.
    restorable: bool = True

    def known(self, instruction: str) -> str:
        """The instruction, where the environment has it, else the first of those that it has."""
        return instruction if instruction in self.instructions else self.instructions[0]


@dataclass
class StepResult:
    """What one step gives. `observation` is None where the caller said that it needs none."""

    observation: Observation | None
    reward: float
    terminated: bool
    truncated: bool
    success: bool

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


class Environment(Protocol):
    """A world with episodes. Images are upright; an adapter turns its source's orientation into that."""

    spec: EnvironmentSpec

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        """Begin an episode. With `seed` the start is a pure function of (seed, instruction); with `init_state`
        (what `get_state` gave at a start) it is that very state. Without `instruction` the seed picks one."""
        ...

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """Apply one action [A] in the ActionSpec's units. `observe=False` saves the rendering."""
        ...

    def get_state(self) -> np.ndarray:
        """The simulator's state, float64 [D]. Not called where `spec.restorable` is False."""
        ...

    def set_state(self, state: np.ndarray, observe: bool = True) -> Observation | None:
        """Put the simulator into a state of `get_state` and observe it; it stays in the episode that it is in.
        `observe=False` saves the rendering and returns None. Not called where `spec.restorable` is False."""
        ...

    def positions(self) -> dict[str, np.ndarray]:
        """Where the hand, its fingers and the objects are: {name: float64 [3]}, in metres, in the world's frame; the
        hand's is called `hand`. Not called where `spec.restorable` is False."""
        ...

    def picture(self, size: int) -> np.ndarray:
        """The present state as people look at it: uint8 [size, size, 3]."""
        ...

    def close(self) -> None: ...
