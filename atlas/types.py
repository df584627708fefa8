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
_OWN_KEYS = {"rotation": ("form",), "gripper": ("continuous", "open", "closed")}  # of a kind; the others lack them


@dataclass(frozen=True)
class ActionGroup:
    """Numbers of an action that follow each other and mean one thing.

    Raises InputError for what cannot be: an unknown kind, no names, a unit of 0, a gripper whose open is its closed.
    """

    kind: Kind
    names: tuple[str, ...]
    unit: float = 1.0  # what 1 stands for: m of a position, rad of angles, m/s and rad/s of a base
    delta: bool = False  # the change in one step; false: where to go to (of a base always a velocity)
    arm: Arm | None = None  # where there are two
    form: RotationForm | None = None  # of a rotation. Quaternions end with their real part; 6d is two columns
    continuous: bool = False  # of a gripper, which else is open or closed and nothing between
    open: float = -1.0  # of a gripper
    closed: float = 1.0  # of a gripper

    def __post_init__(self) -> None:
        if wrong := self._wrong():
            raise InputError(f"A group of actions cannot be so: {wrong}.")

    def _wrong(self) -> str | None:
        if self.kind not in get_args(Kind):
            return f"kind is {self.kind!r}, expected one of {', '.join(get_args(Kind))}"
        if not self.names or not all(isinstance(name, str) and name for name in self.names):
            return f"names of {self.kind} is {list(self.names)}, expected a name for each number"
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
        return self._wrong_rotation() if self.kind == "rotation" else self._wrong_gripper()

    def _wrong_rotation(self) -> str | None:
        if self.form not in ROTATION_NUMBERS:
            return f"form of rotation is {self.form!r}, expected one of {', '.join(ROTATION_NUMBERS)}"
        if len(self.names) != ROTATION_NUMBERS[self.form]:
            return f"a rotation as {self.form} has {ROTATION_NUMBERS[self.form]} numbers, and {len(self.names)} names"
        if self.form not in _WITH_ANGLES and self.unit != 1:
            return f"unit of a rotation as {self.form} is {self.unit:g}, and its numbers have none; leave it out"
        return None

    def _wrong_gripper(self) -> str | None:
        if self.kind != "gripper":
            return None
        if len(self.names) != 1:
            return f"a gripper is one number, and has the names {list(self.names)}; give each a group of its own"
        if self.open == self.closed:
            return f"open and closed of a gripper are both {self.open:g}, and must differ"
        return None

    @property
    def label(self) -> str:
        """Its kind, with its arm where it has one."""
        return f"{self.arm} {self.kind}" if self.arm else self.kind

    @property
    def readable(self) -> tuple[float, str]:
        """What people read it in: the factor from the group's numbers, and the unit. A gripper's is `closed_share`."""
        step = " per step" if self.delta else ""
        if self.kind == "gripper":
            return 1.0, "share closed" if self.continuous else "P(close)"
        if self.kind == "position":
            return 1000 * self.unit, f"mm{step}"
        if self.kind == "joints" or self.form in _WITH_ANGLES:
            return float(np.rad2deg(self.unit)), f"deg{step}"
        return self.unit, ""

    def closed_share(self, values: Array) -> Array:
        """A gripper's numbers from 0 (open) to 1 (closed), what lies beyond cut off: of a binary one P(close)."""
        low, high = min(self.open, self.closed), max(self.open, self.closed)
        return (values.clip(low, high) - self.open) / (self.closed - self.open)  # type: ignore[return-value]

    def describe(self) -> str:
        """For people, such as 'position dx, dy, dz (deltas, 1 = 0.05 m)'."""
        if self.kind == "gripper":
            what = f"{'continuous, ' if self.continuous else ''}{self.open:g} open, {self.closed:g} closed"
        else:
            what = "velocities" if self.kind == "base" else "deltas" if self.delta else "to go to"
            what = f"{self.form}, {what}" if self.form else what
            if self.form in (None, *_WITH_ANGLES):
                what += f", 1 = {self.unit:g} {_UNITS[self.kind]}".rstrip()
        return f"{self.label} {', '.join(self.names)} ({what})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what a group of its kind has."""
        keys = ("kind", "names", "arm") + (() if self.kind == "gripper" else ("unit", "delta"))
        values = {key: getattr(self, key) for key in (*keys, *_OWN_KEYS.get(self.kind, ()))}
        return values | {"names": list(self.names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionGroup:
        """Of `to_dict`'s form. Raises InputError."""
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
    """What the numbers of one action mean; carried by datasets, environments and saved policies.

    The default is LIBERO's: seven numbers at 20 Hz, a position delta (1 = 0.05 m), an axis-angle rotation delta
    (1 = 0.5 rad), both in the robot's base frame, and a gripper (-1 open, +1 close). Raises InputError for groups that
    do not go together: none that moves, two positions, rotations or grippers of one arm, a name that is there twice.
    """

    groups: tuple[ActionGroup, ...] = LIBERO_GROUPS  # their dimensions follow each other
    control_hz: float = 20.0

    def __post_init__(self) -> None:
        if wrong := self._wrong():
            raise InputError(f"An action space cannot be so: {wrong}.")

    def _wrong(self) -> str | None:
        hz = self.control_hz
        if not isinstance(hz, int | float) or isinstance(hz, bool) or not math.isfinite(hz) or hz <= 0:
            return f"control_hz is {hz!r}, expected actions a second"
        if not self.pose:
            return "no group but grippers"
        twice = [name for place, name in enumerate(self.names) if name in self.names[:place]]
        if twice:
            return f"the name '{twice[0]}' is there twice"
        once = [group.label for group in self.groups if group.kind in ("position", "rotation", "gripper")]
        if more := [label for place, label in enumerate(once) if label in once[:place]]:
            return f"two groups are the {more[0]}; say which arm each is of"
        if len(self.spans("gripper")) > 2:
            return "it has three grippers, and two at most can be"
        return None

    # ---- dimensions --------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group.names)

    @property
    def dim(self) -> int:
        return len(self.names)

    def spans(self, *kinds: Kind) -> list[tuple[ActionGroup, slice]]:
        """The groups of these kinds, of any where none is named, each with its dimensions."""
        found, first = [], 0
        for group in self.groups:
            if not kinds or group.kind in kinds:
                found.append((group, slice(first, first + len(group.names))))
            first += len(group.names)
        return found

    @property
    def pose(self) -> list[int]:
        """The dimensions that are no gripper's."""
        return [d for group, part in self.spans() if group.kind != "gripper" for d in range(part.start, part.stop)]

    @property
    def grippers(self) -> list[tuple[int, ActionGroup]]:
        """The dimension of each gripper, and what it is."""
        return [(part.start, group) for group, part in self.spans("gripper")]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Those that groups are said to be of."""
        return tuple(dict.fromkeys(group.arm for group in self.groups if group.arm is not None))

    @property
    def delta(self) -> bool:
        """Whether an action of zeros stands still: all that is no gripper's is a change or a velocity."""
        return all(group.delta or group.kind == "base" for group in self.groups if group.kind != "gripper")

    # ---- units, paths, errors ----------------------------------------------------------------------------

    @property
    def readable_units(self) -> list[str]:
        """Of each number that `readable` gives."""
        return [group.readable[1] for group in self.groups for _ in group.names]

    def readable(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] as people read them, float64 [..., A]: lengths in mm, angles in degrees, grippers from 0
        (open) to 1 (closed), all else in SI units."""
        values = actions.astype(np.float64)
        for group, part in self.spans():
            if group.kind == "gripper":
                values[..., part] = group.closed_share(values[..., part])
            else:
                values[..., part] *= group.readable[0]
        return values

    def paths(self, actions: np.ndarray) -> dict[Arm | None, np.ndarray]:
        """Where the positions in actions [T, A] lead, in m, of each arm that has one: float64 [T + 1, D] from the
        origin for deltas, which are summed; the places to go to, float64 [T, D], else."""
        found = {}
        for group, part in self.spans("position"):
            values = actions[:, part].astype(np.float64) * group.unit
            found[group.arm] = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)]) if group.delta else values
        return found

    @property
    def error_names(self) -> tuple[str, ...]:
        """Of what `errors` gives."""
        return ("pose_l2_error", "pose_l1_error", *self._measured())

    def errors(self, predicted: torch.Tensor, recorded: torch.Tensor) -> dict[str, torch.Tensor]:
        """How far actions [..., A] are from recorded ones, each float64 [...].

        `pose_l2_error` and `pose_l1_error` are of all that is no gripper's, in the actions' own units;
        `position_error_mm` is a distance, `rotation_error_deg` the angle between two rotations, `joint_error_deg` a
        mean over joints, `gripper_error` that of `closed_share`, and `gripper_accuracy` whether it lies on the right
        side of a half. Of two arms each is the mean, and `left/…` and `right/…` are beside it.
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
        """{name of an error: what measures it, and of which groups}."""
        from atlas.action_errors import MEASURES  # reads torch, which configs do without

        found: dict[str, list[tuple[Measure, ActionGroup, slice]]] = {}
        for name, (kind, measure) in MEASURES.items():
            for group, part in self.spans(kind):
                if name == "gripper_accuracy" and group.continuous:
                    continue
                found.setdefault(name, []).append((measure, group, part))
                if len(self.arms) > 1 and group.arm is not None:
                    found.setdefault(f"{group.arm}/{name}", []).append((measure, group, part))
        return found

    # ---- telling it, and telling it apart ----------------------------------------------------------------

    def describe(self) -> str:
        """For people: the groups, and the rate."""
        return f"{'; '.join(group.describe() for group in self.groups)}; {self.control_hz:g} Hz"

    def differences(self, other: ActionSpec, ends: bool = True) -> Iterator[tuple[str, object, object]]:
        """What differs, and its value here and there. Without `ends`, units and grippers' ends may differ."""
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
        """Build a spec from `to_dict`'s form, as JSON has it, or from the form before: one range of position and of
        rotation, and the gripper's dimension. Raises InputError that says what of it cannot be."""
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
    """The groups in the form before them, in which a range is the first and one past the last dimension."""
    ranges = {"position": tuple(position), "rotation": tuple(rotation), "gripper": (gripper, gripper + 1)}
    kinds = sorted((kind for kind, (first, end) in ranges.items() if first < end), key=lambda kind: ranges[kind])
    dimensions = [d for kind in kinds for d in range(*ranges[kind])] if max(map(max, ranges.values())) < 1000 else []
    if dimensions != list(range(len(names))):
        raise InputError(
            f"position {list(position)}, rotation {list(rotation)} and gripper {gripper} are not, one after the other, "
            f"the {len(names)} numbers {list(names)}."
        )
    more: dict[str, dict[str, Any]] = {
        "position": {"unit": position_unit_m, "delta": delta},
        "rotation": {"unit": rotation_unit_rad, "delta": delta, "form": rotation_form},
        "gripper": {},
    }
    return [{"kind": kind, "names": list(names[slice(*ranges[kind])]), **more[kind]} for kind in kinds]


# ---- what a policy is given, and what it answers -------------------------------------------------------------


@dataclass
class Observation:
    """What a policy sees at one step.

    images: {camera: uint8 [H, W, 3]}, upright, RGB; proprio: float32 [P]; instruction: the task in words.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    instruction: str


@dataclass
class Batch:
    """B samples, as the data workers deliver them and policies take them.

    `actions` and `action_is_pad` are absent (None) when a policy is only asked for actions.
    """

    # uint8 [B, V, 3, H, W]; float in [0, 1] once on the device. V = cameras x frames. None where `features` are there.
    images: torch.Tensor | None
    proprio: torch.Tensor  # float32 [B, P]
    instruction: list[str]
    source: torch.Tensor  # int64 [B], which dataset of a mixture: its statistics apply
    actions: torch.Tensor | None = None  # float32 [B, H, A], in the ActionSpec's units
    action_is_pad: torch.Tensor | None = None  # bool [B, H], true past the end of the episode
    key: torch.Tensor | None = None  # int64 [B], what each sample's random numbers follow from; see data/randomness.py
    features: torch.Tensor | None = None  # bfloat16 [B, N, D], what a frozen encoder said of the images

    def __len__(self) -> int:
        return len(self.instruction)

    def unit_images(self) -> torch.Tensor:
        """The images as float32 [B, V, 3, H, W] in [0, 1], with a channel's pixels next to each other in memory,
        whatever order they have come in."""
        assert self.images is not None
        if self.images.is_floating_point():  # they are already
            return self.images
        return self.images.contiguous().float().div_(255)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory that GPUs read by themselves; torch's loader calls it."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that are there, by their names."""
        return {f.name: value for f in fields(self) if hasattr(value := getattr(self, f.name), "pin_memory")}

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)


@dataclass
class LossTerms:
    """What a policy's forward returns.

    The terms are the policy's own: `pose_loss` of all that is no gripper's, `gripper_loss` where there is a gripper,
    and others. Each, and the loss, is a mean over `n_valid` action steps (0-d tensors).
    """

    loss: torch.Tensor
    n_valid: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)
