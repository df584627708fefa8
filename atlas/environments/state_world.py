"""A simulator without its cameras: its proprio holds the objects' poses instead, so that nothing is rendered.

The name of such a world is `state:` and the simulator's name, as in `state:cubes`. A policy that uses state alone
(`model.vision.name=none`) learns there by imitation and by reward, at the speed of the simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from atlas.environments.environment import (
    EnvironmentSpec,
    FeelsContacts,
    NamesTarget,
    NamesTaskThings,
    StateSimulator,
    StepResult,
)
from atlas.errors import InputError
from atlas.types import Observation

PREFIX = "state:"


def state_spec(inner: EnvironmentSpec, cameras: bool = False) -> EnvironmentSpec:
    """Describe what such a world offers. cameras: keep those of the simulator. Raises InputError for a simulator that
    does not give the poses of its objects."""
    if not inner.object_numbers:
        raise InputError(
            f"'{inner.name}' does not give the poses of its objects, so there is no '{PREFIX}{inner.name}'; there are "
            f"{PREFIX}cubes and {PREFIX}metaworld-…"
        )
    return replace(
        inner,
        name=f"{PREFIX}{inner.name}",
        cameras=inner.cameras if cameras else (),
        proprio_dim=inner.proprio_dim + inner.object_numbers,
        object_numbers=0,
        variable=frozenset(),  # most variations of a scene only change images
    )


class StateWorld:
    """The simulator `inner`, observed through numbers: its proprio followed by its `object_state`.

    cameras: observations also hold its images, for a policy that looks while another uses the objects' poses.
    """

    def __init__(self, inner: StateSimulator, cameras: bool = False) -> None:
        self.inner, self.spec, self._cameras = inner, state_spec(inner.spec, cameras), cameras
        self._instruction = ""

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        """See `Simulator.reset`."""
        self._instruction = self.inner.begin(seed=seed, instruction=instruction, init_state=init_state)
        return self.observe()

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """See `Environment.step`."""
        result = self.inner.step(action, observe=False)
        result.observation = self.observe() if observe else None
        return result

    def observe(self) -> Observation:
        """See `Simulator.observe`."""
        seen = np.concatenate([self.inner.proprio(), self.inner.object_state()]).astype(np.float32)
        images = self.inner.observe().images if self._cameras else {}
        return Observation(images, seen, self._instruction)

    def get_state(self) -> np.ndarray:
        """See `Simulator.get_state`."""
        return self.inner.get_state()

    def set_state(self, state: np.ndarray) -> None:
        """See `Simulator.set_state`."""
        self.inner.set_state(state)

    def positions(self) -> dict[str, np.ndarray]:
        """See `Simulator.positions`."""
        return self.inner.positions()

    def picture(self, size: int) -> np.ndarray:
        """See `Simulator.picture`."""
        return self.inner.picture(size)

    def target_object(self) -> str | None:
        """See `NamesTarget.target_object`."""
        return self.inner.target_object() if isinstance(self.inner, NamesTarget) else None

    def contact_forces(self) -> dict[str, float]:
        """See `FeelsContacts.contact_forces`; empty where the simulator does not report contacts."""
        return self.inner.contact_forces() if isinstance(self.inner, FeelsContacts) else {}

    def task_things(self) -> frozenset[str] | None:
        """See `NamesTaskThings.task_things`."""
        return self.inner.task_things() if isinstance(self.inner, NamesTaskThings) else None

    def close(self) -> None:
        self.inner.close()


def of_inner(expert: Callable[..., Any]) -> Callable[..., Any]:
    """An expert of the simulator, for its StateWorld."""

    def start(env: StateWorld, *more: Any) -> Any:
        return expert(env.inner, *more)

    return start
