"""What a gymnasium environment's spaces mean: which parts of an observation are images, which are numbers, and what an
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

RENDER = "render"  # in the place of a part of the observation: the picture that the environment draws
WHOLE = "observation"  # the name of an observation that has no parts


@dataclass(frozen=True)
class ObservationParts:
    """cameras: {our name: the part with its image, or RENDER}; proprio: the parts that are joined."""

    cameras: dict[str, str]
    proprio: tuple[str, ...]
    proprio_dim: int


def observation_parts(space: Any, config: GymConfig, where: str) -> ObservationParts:
    """What of a space is shown to a policy. Raises InputError for a part that there is not, or that is something else.

    where: begins the messages.
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
        raise InputError(f"{where}: its observations are {space}, in which there are neither images nor numbers.")
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
    """What an action [A] is. choices: that a discrete one chooses among; low, high: float64 [A] else."""

    spec: ActionSpec
    choices: int | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def action_meaning(space: Any, config: GymConfig, control_hz: float, where: str) -> ActionMeaning:
    """An ActionSpec of a Box, or of a Discrete space, whose one number is the choice. Raises InputError for another."""
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
    """(dotted name, space) of all parts that have none themselves."""
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
    """How many numbers a part is once it is flat; None where it is none."""
    from gymnasium import spaces

    kinds = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)
    return int(spaces.flatdim(space)) if isinstance(space, kinds) else None


def _no_such(where: str, name: str, known: list[str], what: str) -> str:
    has = ", ".join(known) or "none"
    return f"{where} names '{name}', which is no part with {what}.{did_you_mean(name, known)} There are: {has}."
