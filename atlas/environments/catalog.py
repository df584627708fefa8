"""The environments by name; an adapter of one's own is one line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from atlas.environments.base import Environment, EnvironmentSpec
from atlas.environments.cubes import CubesEnvironment, cubes_spec
from atlas.environments.libero import LiberoEnvironment, libero_spec
from atlas.environments.libero_package import HORIZONS
from atlas.errors import InputError, did_you_mean

# What a world offers, and how it is started; both take the size of the square images.
_WORLDS: dict[str, tuple[Callable[[int], EnvironmentSpec], Callable[[int], Environment]]] = {
    "cubes": (cubes_spec, CubesEnvironment),
    **{name: (partial(libero_spec, name), partial(LiberoEnvironment, name)) for name in HORIZONS},
}


def environment_spec(name: str, image_size: int = 128) -> EnvironmentSpec:
    """What an environment offers, without starting it.

    Raises InputError for an unknown name, or where that is known only once its packages are installed.
    """
    if name not in _WORLDS:
        raise InputError(f"Unknown environment '{name}'.{did_you_mean(name, _WORLDS)} Known: {', '.join(_WORLDS)}.")
    return _WORLDS[name][0](image_size)


def make_environment(name: str, image_size: int = 128) -> Environment:
    """Start an environment by name, its cameras giving square images of `image_size` pixels.

    Raises InputError for an unknown name or where the environment's packages are not installed.
    """
    environment_spec(name)
    return _WORLDS[name][1](image_size)
