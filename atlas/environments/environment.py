"""The contract between policies and worlds: adapters for simulators, real robots and sockets implement it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from atlas.environments.scene_variation import Part
from atlas.types import ActionSpec, Observation


@dataclass(frozen=True)
class EnvironmentSpec:
    """A description of what an environment offers; the same for all its episodes."""

    name: str
    instructions: tuple[str, ...]  # empty: the policy's instruction is the empty text
    cameras: tuple[str, ...]  # empty: the proprio holds all there is to see
    image_size: tuple[int, int]  # height and width of the first camera's images
    proprio_dim: int
    horizon: int  # steps after which an episode is truncated
    action_spec: ActionSpec = field(default_factory=ActionSpec)
    variable: frozenset[Part] = frozenset()  # the parts of its scene that perturbations may change, see VariableScene
    # The lowest and the highest value of each number of an action, infinite where unbounded; None: not known.
    action_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    choices: int | None = None  # the number of discrete actions, of which an action is one; None: continuous actions
    tiers: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (difficulty, its instructions), for tables by difficulty
    judged: bool = True  # whether it reports success; where it does not, there are only rewards
    object_numbers: int = 0  # the length of `StateSimulator.object_state`; 0: it is not such a simulator

    def known(self, instruction: str) -> str:
        """The instruction, where the environment has it; otherwise its first one, or '' where it has none."""
        return instruction if instruction in self.instructions else next(iter(self.instructions), "")


@dataclass
class StepResult:
    """The result of one step. `observation` is None where the caller did not ask for one."""

    observation: Observation | None
    reward: float
    terminated: bool  # the task is over: later states have no value
    truncated: bool  # the time is up
    success: bool
    executed: np.ndarray | None = None  # the clipped action [A]; None where it was executed as given

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


class Expert(Protocol):
    """Solves an environment's task from any state, with information that no policy sees."""

    def act(self) -> np.ndarray:
        """The next action [A], in the ActionSpec's units."""
        ...


@runtime_checkable
class DescribesRobot(Protocol):
    """An environment that says more about its robot than the proprio does."""

    @property
    def model_xml(self) -> str:
        """The MuJoCo model as XML."""
        ...

    def joint_positions(self) -> np.ndarray:
        """The arm's joint angles, float64 [J], in radians."""
        ...


class Environment(Protocol):
    """A world with episodes, with no more than a real robot can offer. Images are upright: an adapter turns those of
    its source."""

    spec: EnvironmentSpec

    def reset(self, *, seed: int | None = None, instruction: str | None = None) -> Observation:
        """Begin an episode. In a simulator its start is a pure function of (seed, instruction). Without `instruction`
        the seed chooses one. Raises InputError for an instruction that the environment lacks."""
        ...

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """Apply one action [A] in the ActionSpec's units. `observe=False` saves the rendering."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Simulator(Environment, Protocol):
    """An environment that knows where everything is, and can be put back into an earlier state."""

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        """See `Environment.reset`. With `init_state` (from `get_state` at an episode's start) instead of a seed, the
        episode begins in exactly that state. Raises InputError for a state of another world."""
        ...

    def observe(self) -> Observation:
        """An observation of the current state."""
        ...

    def get_state(self) -> np.ndarray:
        """The simulator's state, float64 [D]."""
        ...

    def set_state(self, state: np.ndarray) -> None:
        """Put the simulator into a state [D] from `get_state`; the episode goes on."""
        ...

    def positions(self) -> dict[str, np.ndarray]:
        """The positions of the hand (named `hand`), its fingers and the objects: {name: float64 [3]}, in metres, in the
        world's frame."""
        ...

    def picture(self, size: int) -> np.ndarray:
        """A picture of the current state for people: uint8 [size, size, 3]."""
        ...


@runtime_checkable
class StateSimulator(Simulator, Protocol):
    """A simulator that gives as numbers, without rendering, what its cameras would show."""

    def begin(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> str:
        """Like `Simulator.reset`, without an observation; returns the episode's instruction."""
        ...

    def proprio(self) -> np.ndarray:
        """The robot's proprio, as in its observations: float32 [P]."""
        ...

    def object_state(self) -> np.ndarray:
        """The poses of the task's objects and goals relative to the hand: float32 [spec.object_numbers]."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """An environment, simulated or not, that may draw pictures for people."""

    def picture(self, size: int) -> np.ndarray | None:
        """A picture of the current state: uint8 [size, size, 3]; None where the environment draws none."""
        ...


@runtime_checkable
class NamesTarget(Protocol):
    """An environment that names the object of the current task."""

    def target_object(self) -> str | None:
        """The object's name in `Simulator.positions`; None where the task concerns no object, or several."""
        ...


@runtime_checkable
class FeelsContacts(Protocol):
    """An environment that reports what its robot touches."""

    def contact_forces(self) -> dict[str, float]:
        """{thing that the robot touches in the current state: the force, N}: objects by their names in
        `Simulator.positions`, what they stand on as `table`."""
        ...


@runtime_checkable
class NamesTaskThings(Protocol):
    """An environment that names the things that its robot must touch to do the current task."""

    def task_things(self) -> frozenset[str] | None:
        """The things' names, as in `FeelsContacts.contact_forces`; None where they are not known."""
        ...
