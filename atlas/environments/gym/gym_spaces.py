"""The meaning of a gymnasium environment's spaces: which parts of an observation are images or numbers, and what an
action is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.config.action_sections import SourceGroupConfig
from atlas.config.gym_section import GymConfig
from atlas.errors import InputError, did_you_mean
from atlas.types import ActionGroup, ActionSpec

RENDER = "render"  # stands for the picture that the environment draws, instead of a part of the observation
WHOLE = "observation"  # the name of an observation without parts


@dataclass(frozen=True)
class ObservationParts:
    """cameras: {our name: the part with its image, or RENDER}. proprio: the parts that are joined."""

    cameras: dict[str, str]
    proprio: tuple[str, ...]
    proprio_dim: int


def observation_parts(space: Any, config: GymConfig, where: str) -> ObservationParts:
    """The parts of a space that a policy sees. Raises InputError for a part that is missing or of another kind.

    where: the beginning of error messages.
    """
    leaves = dict(_leaves(space))
    images = {name for name, leaf in leaves.items() if _is_image(leaf)}
    numbers = {name: dim for name, leaf in leaves.items() if name not in images and (dim := _width(leaf)) is not None}
    cameras = (
        config.cameras if config.cameras is not None else {name.replace(".", "_"): name for name in sorted(images)}
    )
    for camera, part in cameras.items():
        if part not in (images | {RENDER}):
            raise InputError(_no_such(f"{where}: cameras.{camera}", part, [*sorted(images), RENDER], "images"))
    proprio = tuple(numbers) if config.proprio is None else tuple(config.proprio)
    for part in proprio:
        if part not in numbers:
            raise InputError(_no_such(f"{where}: proprio", part, list(numbers), "numbers"))
    if not cameras and not proprio:
        raise InputError(f"{where}: its observations are {space}, which has neither images nor numbers.")
    return ObservationParts(dict(cameras), proprio, sum(numbers[part] for part in proprio))


def part_of(observation: Any, name: str) -> Any:
    """A part of an observation by its dotted name."""
    if name == WHOLE and not isinstance(observation, Mapping):
        return observation
    for key in name.split("."):
        observation = observation[key]
    return observation


def leaf_of(space: Any, name: str) -> Any:
    """The space of a part."""
    return dict(_leaves(space))[name]


@dataclass(frozen=True)
class ActionMeaning:
    """The meaning of an action [A]. choices: the number of discrete actions. low, high: float64 [A], for continuous
    actions."""

    spec: ActionSpec
    choices: int | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def action_meaning(space: Any, config: GymConfig, control_hz: float, where: str) -> ActionMeaning:
    """The meaning of a Box, or of a Discrete space, whose one number is the choice. Raises InputError for any other
    space."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        if config.action is not None:
            raise InputError(f"{where}: action describes continuous numbers, but its actions are {space}.")
        return ActionMeaning(ActionSpec((ActionGroup("other", ("choice",)),), control_hz), choices=int(space.n))
    if not isinstance(space, spaces.Box):
        raise InputError(f"{where}: its actions are {space}, expected a Box or a Discrete space.")
    low, high = (np.asarray(end, np.float64).reshape(-1) for end in (space.low, space.high))
    groups = _groups(config.action, len(low), where)
    return ActionMeaning(ActionSpec(groups, control_hz), low=low, high=high)


def _groups(config: list[SourceGroupConfig] | None, numbers: int, where: str) -> tuple[ActionGroup, ...]:
    if config is None:
        return (ActionGroup("other", tuple(f"a{column}" for column in range(numbers))),)
    columns = [column for group in config for column in group.span]
    if columns != list(range(numbers)):
        raise InputError(
            f"{where}: the groups of action have the columns {columns}, expected each of the {numbers} once, in order."
        )
    return tuple(group.named(group.names or [f"a{column}" for column in group.span]) for group in config)


def _leaves(space: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, space) of all parts that have no parts themselves."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Dict):
        yield prefix or WHOLE, space
        return
    for name, part in space.spaces.items():
        yield from _leaves(part, f"{prefix}.{name}" if prefix else name)


def _is_image(space: Any) -> bool:
    shape = space.shape
    return space.dtype == np.uint8 and shape is not None and len(shape) == 3 and shape[2] == 3


def _width(space: Any) -> int | None:
    """The number of a flattened part's numbers; None where it does not consist of numbers."""
    from gymnasium import spaces

    kinds = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)
    return int(spaces.flatdim(space)) if isinstance(space, kinds) else None


def _no_such(where: str, name: str, known: list[str], what: str) -> str:
    has = ", ".join(known) or "none"
    return f"{where} names '{name}', which is not a part with {what}.{did_you_mean(name, known)} There are: {has}."
