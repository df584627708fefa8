"""The environments by name. Another package adds its own `World` in the entry-point group `atlas.environments`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from atlas.environments import metaworld_tasks
from atlas.environments.cubes import CubesEnvironment, cubes_spec
from atlas.environments.cubes_expert import CubesDemonstrator, CubesExpert
from atlas.environments.environment import Environment, EnvironmentSpec, Expert
from atlas.environments.gym.aloha_demonstrator import TRANSFER, AlohaDemonstrator
from atlas.environments.gym.gym_name import PREFIX
from atlas.environments.gym.gym_presets import PRESETS
from atlas.environments.gym.gym_world import GymEnvironment, gym_spec
from atlas.environments.libero import LiberoEnvironment, libero_spec
from atlas.environments.libero_package import HORIZONS, PRO_PREFIX, PRO_SUITES
from atlas.environments.metaworld import (
    MetaworldDemonstrator,
    MetaworldEnvironment,
    MetaworldExpert,
    metaworld_spec,
)
from atlas.environments.remote.remote_world import SCHEMES, remote_spec, start_remote
from atlas.environments.state_world import PREFIX as STATE
from atlas.environments.state_world import StateWorld, of_inner, state_spec
from atlas.errors import InputError, did_you_mean
from atlas.system.plugins import PluginTable


@dataclass(frozen=True)
class World:
    """An environment's spec and how to start it; both take the side of its square images in pixels."""

    spec: Callable[[int], EnvironmentSpec]
    start: Callable[[int], Environment]
    # Takes over in an environment of this world for the rest of the current episode; None: there is no expert.
    expert: Callable[[Any], Expert] | None = None
    # Gives demonstrations, with errors drawn from these random numbers and recovery from them; None: there is none.
    demonstrator: Callable[[Any, np.random.Generator], Expert] | None = None


def _libero(name: str) -> World:
    return World(partial(libero_spec, name), partial(LiberoEnvironment, name))


WORLDS: PluginTable[World] = PluginTable(
    "atlas.environments",
    {
        "cubes": World(cubes_spec, CubesEnvironment, CubesExpert, CubesDemonstrator),
        **{name: World(partial(gym_spec, name), partial(GymEnvironment, name)) for name in PRESETS},
        TRANSFER: World(partial(gym_spec, TRANSFER), partial(GymEnvironment, TRANSFER), demonstrator=AlohaDemonstrator),
        **{name: _libero(name) for name in HORIZONS if name not in PRO_SUITES},
    },
)


def environment_spec(name: str, image_size: int = 128) -> EnvironmentSpec:
    """Describe what an environment offers, without starting it.

    Raises InputError for an unknown name, and where missing packages are needed to know it.
    """
    return _world(name).spec(image_size)


def make_environment(name: str, image_size: int = 128) -> Environment:
    """Start an environment by name, with square images of `image_size` x `image_size` pixels.

    Raises InputError for an unknown name, and where the environment's packages are not installed.
    """
    world = _world(name)
    world.spec(image_size)  # names missing packages in its own words
    return world.start(image_size)


def find_expert(name: str) -> Callable[[Any], Expert] | None:
    """The expert that can take over in this environment; None where there is none. Raises InputError for an unknown
    name."""
    return _world(name).expert


def find_demonstrator(name: str) -> Callable[[Any, np.random.Generator], Expert]:
    """The expert that demonstrates this environment's tasks. Raises InputError for an unknown name, and where there is
    no such expert."""
    demonstrator = _world(name).demonstrator
    if demonstrator is None:
        can = [known for known in WORLDS.names() if (world := WORLDS.find(known)) is not None and world.demonstrator]
        raise InputError(
            f"There is no scripted expert for '{name}'; there is one for {', '.join(can)} and {metaworld_tasks.PREFIX}…"
        )
    return demonstrator


def _world(name: str) -> World:
    if name.startswith(STATE):
        return _of_state(_world(name.removeprefix(STATE)))
    if name.startswith(PREFIX):
        return World(partial(gym_spec, name), partial(GymEnvironment, name))
    if name.startswith(SCHEMES):
        return World(partial(remote_spec, name), partial(start_remote, name))
    if name.startswith(metaworld_tasks.PREFIX):
        start = partial(MetaworldEnvironment, name)
        return World(partial(metaworld_spec, name), start, MetaworldExpert, MetaworldDemonstrator)
    if name.startswith(PRO_PREFIX):
        if name not in PRO_SUITES:
            known = ", ".join(PRO_SUITES)
            raise InputError(f"Unknown environment '{name}'.{did_you_mean(name, PRO_SUITES)} LIBERO-PRO's are {known}.")
        return _libero(name)
    world = WORLDS.find(name)
    if world is None:
        raise InputError(
            f"Unknown environment '{name}'.{WORLDS.unknown(name)[:-1]}, {metaworld_tasks.PREFIX}TASK, {PRO_PREFIX}…, "
            f"and {PREFIX}ID for gymnasium's."
        )
    if not isinstance(world, World):
        raise InputError(
            f"'{name}' in {WORLDS.group} should be a World (atlas/environments/catalog.py), and is {world!r}."
        )
    return world


def _of_state(inner: World) -> World:
    """A simulator observed through numbers alone, with its experts."""
    return World(
        lambda size: state_spec(inner.spec(size)),
        lambda size: StateWorld(inner.start(size)),  # type: ignore[arg-type]  # its spec says that it is one
        None if inner.expert is None else of_inner(inner.expert),
        None if inner.demonstrator is None else of_inner(inner.demonstrator),
    )
