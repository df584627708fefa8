"""The nouns every room shares: what an action means, an observation, a batch, the terms of a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from atlas.errors import InputError

if TYPE_CHECKING:
    import torch

    from atlas.action_errors import Measure

Kind = Literal["position", "rotation", "joints", "gripper", "base", "other"]
Arm = Literal["left", "right"]
RotationForm = Literal["axis_angle", "euler_xyz", "quaternion", "rotation_6d"]
Array = TypeVar("Array", "np.ndarray", "torch.Tensor")

ROTATION_NUMBERS = {"axis_angle": 3, "euler_xyz": 3, "quaternion": 4, "rotation_6d": 6}
_WITH_ANGLES = ("axis_angle", "euler_xyz")  # the rotations whose numbers are angles
_UNITS = {"position": "m", "rotation": "rad", "joints": "rad", "base": "m/s and rad/s", "other": ""}
_OWN_KEYS = {"rotation": ("form",), "gripper": ("continuous", "open", "closed")}  # keys that only this kind has


@dataclass(frozen=True)
class ActionGroup:
    """Consecutive numbers of an action that mean one thing together.

    Raises InputError for an impossible group: an unknown kind, no names, a unit of 0, a gripper whose open value is
    also its closed one.
    """

    kind: Kind
    names: tuple[str, ...]
    unit: float = 1.0  # what 1 stands for: m for positions, rad for angles, m/s and rad/s for a base
    delta: bool = False  # true: the change in one step; false: the target (a base always has velocities)
    arm: Arm | None = None  # set where there are two
    form: RotationForm | None = None  # rotations only. Quaternions end with their real part; 6d is two columns
    continuous: bool = False  # grippers only; false: either open or closed
    open: float = -1.0  # grippers only
    closed: float = 1.0  # grippers only
    percent: bool = False  # joints only: -100 to 100 over each joint's range, as LeRobot has them; angles are unknown

    def __post_init__(self) -> None:
        if wrong := self._wrong():
            raise InputError(f"This group of actions is impossible: {wrong}.")

    def _wrong(self) -> str | None:
        if self.kind not in get_args(Kind):
            return f"kind is {self.kind!r}, expected one of {', '.join(get_args(Kind))}"
        if not self.names or not all(isinstance(name, str) and name for name in self.names):
            return f"names of {self.kind} is {list(self.names)}, expected one name per number"
        numbers = {"unit": self.unit, "open": self.open, "closed": self.closed}
        for key, value in numbers.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                return f"{key} of {self.kind} is {value!r}, expected a number"
        if self.unit <= 0:
            return f"unit of {self.kind} is {self.unit:g}, expected more than 0"
        if self.arm not in (None, *get_args(Arm)):
            return f"arm of {self.kind} is {self.arm!r}, expected {' or '.join(get_args(Arm))}, or none"
        if not isinstance(self.delta, bool) or not isinstance(self.continuous, bool):
            return f"delta of {self.kind} is {self.delta!r} and continuous {self.continuous!r}, expected true or false"
        if not isinstance(self.percent, bool) or (self.percent and (self.kind != "joints" or self.unit != 1)):
            return f"percent of {self.kind} is {self.percent!r}, which is for joints, whose unit is then left out"
        return self._wrong_rotation() if self.kind == "rotation" else self._wrong_gripper()

    def _wrong_rotation(self) -> str | None:
        if self.form not in ROTATION_NUMBERS:
            return f"form of rotation is {self.form!r}, expected one of {', '.join(ROTATION_NUMBERS)}"
        if len(self.names) != ROTATION_NUMBERS[self.form]:
            return f"a rotation as {self.form} has {ROTATION_NUMBERS[self.form]} numbers, but {len(self.names)} names"
        if self.form not in _WITH_ANGLES and self.unit != 1:
            return f"unit of a rotation as {self.form} is {self.unit:g}, but its numbers have no unit; leave it out"
        return None

    def _wrong_gripper(self) -> str | None:
        if self.kind != "gripper":
            return None
        if len(self.names) != 1:
            return f"a gripper is one number, but has the names {list(self.names)}; give each its own group"
        if self.open == self.closed:
            return f"open and closed of a gripper are both {self.open:g}, and must differ"
        return None

    @property
    def label(self) -> str:
        """Its kind, preceded by its arm if it has one."""
        return f"{self.arm} {self.kind}" if self.arm else self.kind

    @property
    def readable(self) -> tuple[float, str]:
        """Return the factor and the unit by which people read it. For grippers see `closed_share`."""
        step = " per step" if self.delta else ""
        if self.kind == "gripper":
            return 1.0, "share closed" if self.continuous else "P(close)"
        if self.kind == "position":
            return 1000 * self.unit, f"mm{step}"
        if self.percent:
            return 1.0, f"%{step}"
        if self.kind == "joints" or self.form in _WITH_ANGLES:
            return float(np.rad2deg(self.unit)), f"deg{step}"
        return self.unit, ""

    def closed_share(self, values: Array) -> Array:
        """A gripper's numbers scaled to 0 (open) ... 1 (closed) and clipped; for a binary gripper this is P(close)."""
        low, high = min(self.open, self.closed), max(self.open, self.closed)
        return (values.clip(low, high) - self.open) / (self.closed - self.open)  # type: ignore[return-value]

    def describe(self) -> str:
        """A description for people, such as 'position dx, dy, dz (deltas, 1 = 0.05 m)'."""
        if self.kind == "gripper":
            what = f"{'continuous, ' if self.continuous else ''}{self.open:g} open, {self.closed:g} closed"
        else:
            what = "velocities" if self.kind == "base" else "deltas" if self.delta else "targets"
            what = f"{self.form}, {what}" if self.form else what
            if self.percent:
                what += ", -100 to 100 over each joint's range"
            elif self.kind != "base" and math.isclose(self.unit, math.pi / 180, rel_tol=1e-6):
                what += ", in degrees"
            elif self.form in (None, *_WITH_ANGLES):
                what += f", 1 = {self.unit:g} {_UNITS[self.kind]}".rstrip()
        return f"{self.label} {', '.join(self.names)} ({what})"

    def to_dict(self) -> dict[str, Any]:
        """The group as JSON, with only the keys that its kind has."""
        keys = ("kind", "names", "arm") + (() if self.kind == "gripper" else ("unit", "delta"))
        values = {key: getattr(self, key) for key in (*keys, *_OWN_KEYS.get(self.kind, ()))}
        values |= {"percent": True} if self.percent else {}  # left out otherwise: older versions do not know it
        return values | {"names": list(self.names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionGroup:
        """The inverse of `to_dict`. Raises InputError."""
        known = {f.name for f in fields(cls)}
        if unknown := [key for key in values if key not in known]:
            raise InputError(f"A group of actions has no key {unknown[0]!r}; it has {', '.join(sorted(known))}.")
        names = values.get("names")
        if not isinstance(names, list | tuple):
            raise InputError(f"names of a group of actions is {names!r}, expected a list of names.")
        return cls(**{"kind": None, **values, "names": tuple(names)})


LIBERO_GROUPS = (
    ActionGroup("position", ("dx", "dy", "dz"), unit=0.05, delta=True),
    ActionGroup("rotation", ("rx", "ry", "rz"), unit=0.5, delta=True, form="axis_angle"),
    ActionGroup("gripper", ("gripper",)),
)


@dataclass(frozen=True)
class ActionSpec:
    """The meaning of one action's numbers; carried by datasets, environments and saved policies.

    The default is LIBERO's: seven numbers at 20 Hz, a position delta (1 = 0.05 m), an axis-angle rotation delta
    (1 = 0.5 rad), both in the robot's base frame, and a gripper (-1 open, +1 close). Raises InputError for groups that
    do not go together: no group that moves, two positions, rotations or grippers of one arm, a repeated name.
    """

    groups: tuple[ActionGroup, ...] = LIBERO_GROUPS  # in the order of their dimensions
    control_hz: float = 20.0

    def __post_init__(self) -> None:
        if wrong := self._wrong():
            raise InputError(f"This action space is impossible: {wrong}.")

    def _wrong(self) -> str | None:
        hz = self.control_hz
        if not isinstance(hz, int | float) or isinstance(hz, bool) or not math.isfinite(hz) or hz <= 0:
            return f"control_hz is {hz!r}, expected the number of actions per second"
        if not self.pose:
            return "it has no group other than grippers"
        twice = [name for place, name in enumerate(self.names) if name in self.names[:place]]
        if twice:
            return f"the name '{twice[0]}' occurs twice"
        once = [group.label for group in self.groups if group.kind in ("position", "rotation", "gripper")]
        if more := [label for place, label in enumerate(once) if label in once[:place]]:
            return f"two groups are the {more[0]}; say which arm each belongs to"
        if len(self.spans("gripper")) > 2:
            return "it has three grippers, but at most two are supported"
        return None

    # ---- dimensions --------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group.names)

    @property
    def dim(self) -> int:
        return len(self.names)

    def spans(self, *kinds: Kind) -> list[tuple[ActionGroup, slice]]:
        """The groups of these kinds (of all kinds if none is given), each with its dimensions."""
        found, first = [], 0
        for group in self.groups:
            if not kinds or group.kind in kinds:
                found.append((group, slice(first, first + len(group.names))))
            first += len(group.names)
        return found

    @property
    def pose(self) -> list[int]:
        """All dimensions except the grippers'."""
        return [d for group, part in self.spans() if group.kind != "gripper" for d in range(part.start, part.stop)]

    @property
    def grippers(self) -> list[tuple[int, ActionGroup]]:
        """Each gripper with its dimension."""
        return [(part.start, group) for group, part in self.spans("gripper")]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that the groups name."""
        return tuple(dict.fromkeys(group.arm for group in self.groups if group.arm is not None))

    @property
    def delta(self) -> bool:
        """Whether an action of zeros stands still: every group except the grippers is a change or a velocity."""
        return all(group.delta or group.kind == "base" for group in self.groups if group.kind != "gripper")

    # ---- units, paths, errors ----------------------------------------------------------------------------

    @property
    def readable_units(self) -> list[str]:
        """The unit of each number that `readable` gives."""
        return [group.readable[1] for group in self.groups for _ in group.names]

    def readable(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] as people read them, float64 [..., A]: lengths in mm, angles in degrees, grippers from 0
        (open) to 1 (closed), everything else in SI units."""
        values = actions.astype(np.float64)
        for group, part in self.spans():
            if group.kind == "gripper":
                values[..., part] = group.closed_share(values[..., part])
            else:
                values[..., part] *= group.readable[0]
        return values

    def paths(self, actions: np.ndarray) -> dict[Arm | None, np.ndarray]:
        """Return where the positions in actions [T, A] lead, in m, for each arm that has one. Deltas are summed from
        the origin: float64 [T + 1, D]; targets are returned as they are: float64 [T, D]."""
        found = {}
        for group, part in self.spans("position"):
            values = actions[:, part].astype(np.float64) * group.unit
            found[group.arm] = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)]) if group.delta else values
        return found

    @property
    def error_names(self) -> tuple[str, ...]:
        """The names of the values that `errors` gives."""
        return ("pose_l2_error", "pose_l1_error", *self._measured())

    def errors(self, predicted: torch.Tensor, recorded: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return how far actions [..., A] are from recorded ones, each float64 [...].

        `pose_l2_error` and `pose_l1_error` cover everything except grippers, in the actions' own units;
        `position_error_mm` is a distance, `rotation_error_deg` the angle between two rotations, `joint_error_deg` (or
        `joint_error_percent`, of joints in percent of their range) a mean over joints, `gripper_error` the difference
        in `closed_share`, and `gripper_accuracy` is 1 where both lie on the same side of one half. With two arms each
        is the mean, and `left/…` and `right/…` give each arm's.
        """
        import torch

        predicted, recorded = predicted.double(), recorded.double()
        parts = [part for group, part in self.spans() if group.kind != "gripper"]
        error = torch.cat([predicted[..., part] - recorded[..., part] for part in parts], -1)
        found = {"pose_l2_error": error.norm(dim=-1), "pose_l1_error": error.abs().mean(-1)}
        for name, measured in self._measured().items():
            each = [measure(group, predicted[..., part], recorded[..., part]) for measure, group, part in measured]
            found[name] = torch.stack(each, -1).mean(-1)
        return found

    def _measured(self) -> dict[str, list[tuple[Measure, ActionGroup, slice]]]:
        """{name of an error: how each group it covers is measured}."""
        from atlas.action_errors import MEASURES  # imports torch, which configs do without

        found: dict[str, list[tuple[Measure, ActionGroup, slice]]] = {}
        for name, (kind, measure) in MEASURES.items():
            for group, part in self.spans(kind):
                if (name == "gripper_accuracy" and group.continuous) or (
                    kind == "joints" and group.percent != (name == "joint_error_percent")
                ):
                    continue
                found.setdefault(name, []).append((measure, group, part))
                if len(self.arms) > 1 and group.arm is not None:
                    found.setdefault(f"{group.arm}/{name}", []).append((measure, group, part))
        return found

    # ---- describing and comparing ------------------------------------------------------------------------

    def describe(self) -> str:
        """A description for people: the groups and the rate."""
        return f"{'; '.join(group.describe() for group in self.groups)}; {self.control_hz:g} Hz"

    def differences(self, other: ActionSpec, ends: bool = True) -> Iterator[tuple[str, object, object]]:
        """Name the differences and both values. Without `ends`, units and the grippers' end values may differ."""
        if self.control_hz != other.control_hz:
            yield "control_hz", self.control_hz, other.control_hz
        if [(g.kind, len(g.names)) for g in self.groups] != [(g.kind, len(g.names)) for g in other.groups]:
            yield "groups", [g.describe() for g in self.groups], [g.describe() for g in other.groups]
            return
        keys = [f.name for f in fields(ActionGroup) if ends or f.name not in ("unit", "open", "closed")]
        for mine, its in zip(self.groups, other.groups, strict=True):
            for key in keys:
                if getattr(mine, key) != getattr(its, key):
                    yield f"{key} of {mine.label}", getattr(mine, key), getattr(its, key)

    def to_dict(self) -> dict[str, Any]:
        return {"groups": [group.to_dict() for group in self.groups], "control_hz": self.control_hz}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionSpec:
        """Build a spec from `to_dict`'s form, as JSON has it, or from the earlier form: one range for position, one for
        rotation, and the gripper's dimension. Raises InputError that says what is wrong with it."""
        try:
            groups = values["groups"] if "groups" in values else _groups_of_ranges(**values)
            read = tuple(ActionGroup.from_dict(group) for group in groups)
            return cls(read, values.get("control_hz", cls.control_hz))
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise InputError(f"{values!r:.200} does not describe actions ({error}).") from None


def _groups_of_ranges(
    names: Sequence[str] = ("dx", "dy", "dz", "rx", "ry", "rz", "gripper"),
    position: Sequence[int] = (0, 3),
    rotation: Sequence[int] = (3, 6),
    gripper: int = 6,
    position_unit_m: float = 0.05,
    rotation_unit_rad: float = 0.5,
    rotation_form: str = "axis_angle",
    delta: bool = True,
    control_hz: float = 20.0,  # read by the caller
) -> list[dict[str, Any]]:
    """The groups of the earlier form, in which a range is its first dimension and the one after its last."""
    ranges = {"position": tuple(position), "rotation": tuple(rotation), "gripper": (gripper, gripper + 1)}
    kinds = sorted((kind for kind, (first, end) in ranges.items() if first < end), key=lambda kind: ranges[kind])
    dimensions = [d for kind in kinds for d in range(*ranges[kind])] if max(map(max, ranges.values())) < 1000 else []
    if dimensions != list(range(len(names))):
        raise InputError(
            f"position {list(position)}, rotation {list(rotation)} and gripper {gripper} do not cover, one after the "
            f"other, the {len(names)} numbers {list(names)}."
        )
    more: dict[str, dict[str, Any]] = {
        "position": {"unit": position_unit_m, "delta": delta},
        "rotation": {"unit": rotation_unit_rad, "delta": delta, "form": rotation_form},
        "gripper": {},
    }
    return [{"kind": kind, "names": list(names[slice(*ranges[kind])]), **more[kind]} for kind in kinds]


# ---- what a policy is given, and what it returns ------------------------------------------------------------


@dataclass
class Observation:
    """The view that a policy has at one step.

    images: {camera: uint8 [H, W, 3]}, upright, RGB; proprio: float32 [P]; instruction: the task in words. past: what
    was seen before, the earliest first, for a policy that looks at it (atlas/data/sampling/history.py).
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    instruction: str
    past: tuple[Observation, ...] = ()


@dataclass
class Batch:
    """B samples, as the data workers deliver them and policies take them.

    `actions` and `action_is_pad` are absent (None) when a policy is only asked for actions.
    """

    # uint8 [B, V, 3, H, W]; float in [0, 1] once on the device. V = frames x cameras, the earliest frame's first. None
    # if there are `features`, or the policy does not look.
    images: torch.Tensor | None
    proprio: torch.Tensor  # float32 [B, P]; with a history frames x P, the present one's last
    instruction: list[str]
    source: torch.Tensor  # int64 [B], the dataset of the mixture it comes from, whose statistics apply
    actions: torch.Tensor | None = None  # float32 [B, H, A], in the ActionSpec's units
    action_is_pad: torch.Tensor | None = None  # bool [B, H], true past the end of the episode
    key: torch.Tensor | None = None  # int64 [B], seeds each sample's random numbers; see data/sampling/randomness.py
    features: torch.Tensor | None = None  # bfloat16 [B, N, D], a frozen encoder's output for the images

    def __len__(self) -> int:
        return len(self.instruction)

    def unit_images(self) -> torch.Tensor:
        """The images as float32 [B, V, 3, H, W] in [0, 1], with each channel's pixels contiguous in memory, whatever
        their layout was."""
        assert self.images is not None
        if self.images.is_floating_point():  # already converted
            return self.images
        return self.images.contiguous().float().div_(255)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, which GPUs read directly; torch's loader calls it."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are not None, by name."""
        return {f.name: value for f in fields(self) if hasattr(value := getattr(self, f.name), "pin_memory")}

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)


@dataclass
class LossTerms:
    """The result of a policy's forward.

    The terms are the policy's own: `pose_loss` for everything except grippers, `gripper_loss` where there is a gripper,
    and others. Each, and the loss, is a mean over `n_valid` action steps (0-d tensors).
    """

    loss: torch.Tensor
    n_valid: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)
