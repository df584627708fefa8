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
    instructions: tuple[str, ...]  # none: a policy is told nothing, the empty text
    cameras: tuple[str, ...]  # none: what there is to see is in the proprio
    image_size: tuple[int, int]  # height, width; of the first camera
    proprio_dim: int
    horizon: int  # steps after which an episode is truncated
    action_spec: ActionSpec = field(default_factory=ActionSpec)
    variable: frozenset[Part] = frozenset()  # what of its scene perturbations may change, see VariableScene
    # The lowest and the highest value of each number of an action, infinite where there is none; None: not known.
    action_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    choices: int | None = None  # that an action, which is one number, chooses among; None: actions are continuous
    tiers: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (how hard, these instructions), where tables tell them apart
    judged: bool = True  # whether it tells success at all; where it does not, rewards are all there is
    object_numbers: int = 0  # that `StateSimulator.object_state` gives; 0: it is no such simulator

    def known(self, instruction: str) -> str:
        """The instruction, where the environment has it, else the first of those that it has, if it has any."""
        return instruction if instruction in self.instructions else next(iter(self.instructions), "")


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


@runtime_checkable
class DescribesRobot(Protocol):
    """An environment that says more of its robot than the proprio does."""

    @property
    def model_xml(self) -> str:
        """The MuJoCo model as XML."""
        ...

    def joint_positions(self) -> np.ndarray:
        """The arm's joint angles, float64 [J], in radians."""
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
class StateSimulator(Simulator, Protocol):
    """A simulator that says by numbers what cameras would show, without rendering."""

    def begin(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> str:
        """As `Simulator.reset`, without looking; the instruction of the episode."""
        ...

    def proprio(self) -> np.ndarray:
        """What the robot feels of itself, as in its observations: float32 [P]."""
        ...

    def object_state(self) -> np.ndarray:
        """Where the objects and goals of the task are: float32 [spec.object_numbers], seen from the hand."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """An environment that can be looked at, be it a simulator or not."""

    def picture(self, size: int) -> np.ndarray | None:
        """The present state as people look at it: uint8 [size, size, 3]; None where nothing draws it."""
        ...


@runtime_checkable
class NamesTarget(Protocol):
    """An environment that says which of its objects the present task is about."""

    def target_object(self) -> str | None:
        """Its name in `Simulator.positions`; None where the task is about none, or about several."""
        ...


@runtime_checkable
class FeelsContacts(Protocol):
    """An environment that says what its robot touches."""

    def contact_forces(self) -> dict[str, float]:
        """{what the robot touches in the present state: with how much force, N}: objects by their names in
        `Simulator.positions`, what they stand on as `table`."""
        ...


@runtime_checkable
class NamesTaskThings(Protocol):
    """An environment that says what its robot has to touch to do the present task."""

    def task_things(self) -> frozenset[str] | None:
        """By the names of `FeelsContacts.contact_forces`; None where that is not known."""
        ...
