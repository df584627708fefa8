"""Actions relative to the state at the chunk's start, instead of absolute targets; undone when a policy is sampled.

Positions and joints become target - state. Rotations become the turn that leads from the state to the target, about
fixed axes: target = turn * state. Grippers, velocities and what is a change already stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from atlas.config.action_sections import numbers_of_form
from atlas.config.model_section import ProcessorConfig
from atlas.data.episode import EpisodeDataset
from atlas.data.mixture import sources_of
from atlas.data.proprio import proprio_names, state_columns
from atlas.errors import InputError
from atlas.rotations import from_quaternion, inverse, multiply, nearest_half, to_quaternion
from atlas.types import ActionGroup, ActionSpec

KEY = "model.processor.relative_to"
_GROWN = 1.5  # relative to the right state, numbers become smaller; relative to other numbers, larger
_LOOKED_AT = 20_000  # frames


@dataclass(frozen=True)
class RelativePart:
    """A group of the actions, and the proprio that says where it is."""

    group: ActionGroup
    first: int  # its first dimension in an action
    state: tuple[int, ...]  # the proprio's dimensions
    form: str | None = None  # of a rotation in the proprio
    side: tuple[float, ...] | None = None  # of a rotation: the quaternion on whose side targets are given

    @property
    def dimensions(self) -> slice:
        return slice(self.first, self.first + len(self.group.names))

    def relative(self, targets: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """targets float [..., n], state float [..., m], with the same leading dimensions after broadcasting."""
        if self.group.kind != "rotation":
            return targets - state
        target, own = self._quaternion(targets), self._state(state)
        turn = nearest_half(multiply(target, inverse(own).expand_as(target)))
        return self._numbers(turn, targets)

    def absolute(self, turns: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The inverse of `relative`."""
        if self.group.kind != "rotation":
            return turns + state
        turn = self._quaternion(turns)
        target = multiply(turn, self._state(state).expand_as(turn))
        side = target.new_tensor(self.side or (1.0, 0.0, 0.0, 0.0))
        target = torch.where((target * side).sum(-1, keepdim=True) < 0, -target, target)
        return self._numbers(target, turns)

    def _quaternion(self, values: torch.Tensor) -> torch.Tensor:
        assert self.group.form is not None
        return to_quaternion(values.double() * self.group.unit, self.group.form)

    def _state(self, values: torch.Tensor) -> torch.Tensor:
        assert self.form is not None
        unit = self.group.unit if self.form == self.group.form else 1.0
        return to_quaternion(values.double() * unit, self.form)

    def _numbers(self, quaternion: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        assert self.group.form is not None
        return (from_quaternion(quaternion, self.group.form) / self.group.unit).to(like.dtype)


@dataclass(frozen=True)
class RelativeActions:
    """The numbers of an action that are relative to numbers of the proprio, and to which."""

    parts: tuple[RelativePart, ...]

    def relative(self, actions: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Chunks [B, H, A] of targets as a policy learns them. state: the proprio [B, P] at the chunks' start."""
        return self._changed(actions, state, "relative")

    def absolute(self, actions: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The targets [B, H, A] of chunks that a policy gives; the inverse of `relative`."""
        return self._changed(actions, state, "absolute")

    def _changed(self, actions: torch.Tensor, state: torch.Tensor, way: str) -> torch.Tensor:
        changed = actions.clone()
        for part in self.parts:
            own = state[:, None, list(part.state)].to(actions.dtype)
            changed[..., part.dimensions] = getattr(part, way)(actions[..., part.dimensions], own)
        return changed

    def describe(self, dataset: EpisodeDataset) -> str:
        """Describe it for people, with the dataset's names for its proprio."""
        names = [name for name, _ in proprio_names(sources_of(dataset)[0].dataset)]
        said = [f"{part.group.label} to {', '.join(names[d] for d in part.state)}" for part in self.parts]
        return "; ".join(said)

    def to_dict(self) -> list[dict[str, Any]]:
        return [{"first": p.first, "state": list(p.state), "form": p.form, "side": p.side} for p in self.parts]

    @classmethod
    def from_dict(cls, values: Sequence[Mapping[str, Any]], spec: ActionSpec, proprio_dim: int) -> RelativeActions:
        """The inverse of `to_dict`, for these actions. Raises TypeError, ValueError or KeyError for any other form."""
        groups = {part.start: group for group, part in spec.spans()}
        parts = []
        for each in values:
            group, state, form = groups[each["first"]], tuple(each["state"]), each["form"]
            numbers = len(group.names) if form is None else numbers_of_form(form)
            if len(state) != numbers or not all(type(d) is int and 0 <= d < proprio_dim for d in state):
                raise ValueError(f"the state of relative actions is {state}, expected {numbers} of {proprio_dim}")
            side = None if each["side"] is None else tuple(float(number) for number in each["side"])
            parts.append(RelativePart(group, each["first"], state, form, side))
        return cls(tuple(parts))


def relative_actions(dataset: EpisodeDataset, config: ProcessorConfig) -> RelativeActions | None:
    """Find out what is relative to what in a dataset; None if actions stay as they are. Raises InputError that says
    what to set where the state of an action cannot be told, or is none."""
    if not config.relative_actions:
        return None
    spec, key = dataset.action_spec, "model.processor.relative_actions"
    wanted = [(g, s) for g, s in spec.spans("position", "rotation", "joints") if not g.delta]
    if not wanted:
        raise InputError(f"{key} is true, but the actions of {dataset.path} have no targets: {spec.describe()}.")
    if euler := next((group for group, _ in wanted if group.form == "euler_xyz"), None):
        raise InputError(
            f"{key} is true, but the {euler.label} of {dataset.path} is in Euler angles, which have no difference; set "
            "into: rotation_6d in its group of data.features.action_spec."
        )
    sources = sources_of(dataset)
    own = sources[0].dataset
    if any(source.scale is not None and (source.scale[spec.pose] != 1).any() for source in sources):
        raise InputError(f"{key} is true, but the sources of data.datasets have actions in different units.")
    names = [name for name, _ in proprio_names(own)]
    forms = [None if g.kind != "rotation" else config.relative_rotation or g.form for g, _ in wanted]
    numbers = [
        len(g.names) if form is None else numbers_of_form(form) for (g, _), form in zip(wanted, forms, strict=True)
    ]
    columns = _columns(dataset, own, config, [g for g, _ in wanted], numbers, names)
    parts, place = [], 0
    for (group, dimensions), form, count in zip(wanted, forms, numbers, strict=True):
        parts.append(RelativePart(group, dimensions.start, tuple(columns[place : place + count]), form))
        place += count
    found = RelativeActions(tuple(_on_its_side(part, own) for part in parts))
    _check_follows(dataset, found, names)
    return found


def _columns(
    dataset: EpisodeDataset,
    own: EpisodeDataset,
    config: ProcessorConfig,
    groups: Sequence[ActionGroup],
    numbers: Sequence[int],
    names: Sequence[str],
) -> list[int]:
    """The proprio's dimensions, one after the other. own: the mixture's first source."""
    needed, wanted = sum(numbers), [name for group in groups for name in group.names]
    listed = ", ".join(f"{place}: {name}" for place, name in enumerate(names))
    if config.relative_to is not None:
        given = list(config.relative_to)
        if len(given) != needed or len(set(given)) != needed or not all(0 <= c < len(names) for c in given):
            raise InputError(
                f"{KEY} is {given}, but {', '.join(wanted)} need {needed} different dimensions of the proprio of "
                f"{dataset.path}, which has {listed}."
            )
        return given
    columns = state_columns(own, wanted) if needed == len(wanted) else None
    if columns is not None:
        return columns
    raise InputError(
        f"model.processor.relative_actions is true, but which numbers of the proprio say where {', '.join(wanted)} are "
        f"cannot be told by their names. Name the {needed} dimensions in {KEY}; the proprio of {dataset.path} has "
        f"{listed}."
    )


def _on_its_side(part: RelativePart, dataset: EpisodeDataset) -> RelativePart:
    """Return a rotation's state with the quaternion on whose side the dataset's targets are."""
    if part.group.kind != "rotation":
        return part
    actions = np.asarray(_some(dataset.numbers().actions)[:, part.dimensions])
    mean = part._quaternion(torch.from_numpy(actions)).mean(0)
    return RelativePart(part.group, part.first, part.state, part.form, tuple(mean.tolist()))


def _some(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, len(values) // _LOOKED_AT)]


def _check_follows(dataset: EpisodeDataset, found: RelativeActions, names: Sequence[str]) -> None:
    """Raises InputError where actions grow by being relative: what they are relative to is not their state."""
    for source in sources_of(dataset):
        actions, proprio = (_some(numbers).astype(np.float64) for numbers in source.dataset.numbers())
        for part in found.parts:
            if part.group.kind == "rotation":
                continue
            targets, state = actions[:, part.dimensions], proprio[:, list(part.state)]
            before, after = np.abs(targets - targets.mean(0)).mean(0), np.abs(targets - state).mean(0)
            moving = before > 1e-6
            if moving.any() and np.median(after[moving] / before[moving]) > _GROWN:
                worst = int(np.argmax(after / np.maximum(before, 1e-6)))
                raise InputError(
                    f"model.processor.relative_actions is true, but in {source.dataset.path} the {part.group.label} "
                    f"is not near the proprio that it would be relative to: '{part.group.names[worst]}' is on average "
                    f"{after[worst]:.3g} from '{names[part.state[worst]]}', and {before[worst]:.3g} from its "
                    f"own mean. Is one of them in another unit? {KEY} says which numbers are meant."
                )
