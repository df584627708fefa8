"""`data.features.action_spec`: what the numbers of a source's actions mean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from atlas.config.section import Names, Section
from atlas.errors import InputError
from atlas.types import ROTATION_NUMBERS, ActionGroup, Arm, Kind, RotationForm

Dimension = Annotated[int, Field(ge=0)]
Unit = Annotated[float, Field(gt=0)]

# How a source may store a rotation: as policies have it, or in a form that is converted. euler_abc turns about the
# fixed axes a, b, c in this order, euler_ABC about the moving ones. See atlas/rotations.py.
OtherForm = Literal[
    "quaternion_wxyz", "matrix", "rotation_6d_rows",
    "euler_xzy", "euler_yxz", "euler_yzx", "euler_zxy", "euler_zyx",
    "euler_XYZ", "euler_XZY", "euler_YXZ", "euler_YZX", "euler_ZXY", "euler_ZYX",
]  # fmt: skip
_OTHER_NUMBERS = {"quaternion_wxyz": 4, "matrix": 9, "rotation_6d_rows": 6}
_AS_POLICIES_HAVE_IT: dict[str, RotationForm] = {
    "quaternion_wxyz": "quaternion", "matrix": "rotation_6d", "rotation_6d_rows": "rotation_6d",
}  # fmt: skip

_GRIPPER_ENDS = {"gripper_open", "gripper_closed"}


class SourceGroupConfig(Section):
    """Consecutive numbers of a source's actions that mean one thing. They are used unchanged, except that rotations may
    be converted, and that rotations to go to are kept from jumping. See ActionGroup."""

    kind: Kind
    columns: tuple[Dimension, Dimension] | Dimension  # the first dimension and the one after the last; or the only one
    names: Names | None = None  # null: the source's own names
    arm: Arm | None = None  # set where there are two
    unit: Unit = 1.0  # what 1 stands for: m, rad, m/s and rad/s
    percent: bool = False  # joints only: -100 to 100 over each joint's range, as LeRobot has them
    delta: bool = False  # true: the change in one step; false: the target
    form: RotationForm | OtherForm | None = None  # rotations only: the source's
    into: RotationForm | None = None  # rotations only: the policy's; null: the source's, or the nearest to it
    continuous: bool = False  # grippers only; false: either open or closed
    open: float | None = None  # grippers only: the source's value
    closed: float | None = None

    @model_validator(mode="after")
    def _agree(self) -> SourceGroupConfig:
        if not len(self.span):
            raise ValueError(
                f"columns is {self.columns}, expected the first dimension and the one after the last, such as [0, 3]"
            )
        if self.kind == "gripper" and (self.open is None or self.closed is None):
            raise ValueError(
                "a gripper needs open and closed: the source's values for both, such as open: 1, closed: 0"
            )
        if self.kind != "gripper" and (self.continuous or (self.open, self.closed) != (None, None)):
            raise ValueError(f"continuous, open and closed are for grippers, but kind is {self.kind}")
        if self.kind != "rotation" and (self.form, self.into) != (None, None):
            raise ValueError(f"form and into are for rotations, but kind is {self.kind}")
        if self.into is not None and self.form is None:
            raise ValueError(f"into is {self.into}, but form, which says what the source has, is missing")
        if self.form is not None and len(self.span) != numbers_of_form(self.form):
            raise ValueError(
                f"a rotation as {self.form} has {numbers_of_form(self.form)} numbers, but columns has {len(self.span)}"
            )
        if self.form in get_args(OtherForm) and not self._of_angles and self.unit != 1:
            raise ValueError(f"unit of a rotation as {self.form} is {self.unit:g}, but its numbers have no unit")
        if self.names is not None and len(self.names) != self.width:
            what = f"{self.target} has {self.width}" if self.converts else f"columns has {self.width}"
            raise ValueError(f"names has {len(self.names)} names, but {what} numbers")
        try:
            self.named(self.names or [str(number) for number in range(self.width)])
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def span(self) -> range:
        """The source's dimensions."""
        return range(*self.columns) if isinstance(self.columns, tuple) else range(self.columns, self.columns + 1)

    @property
    def target(self) -> RotationForm | None:
        """The form that a rotation is read into; None for other kinds."""
        if self.form is None or self.into is not None:
            return self.into
        if self.form in ROTATION_NUMBERS:
            return self.form  # type: ignore[return-value]
        return _AS_POLICIES_HAVE_IT.get(self.form, "euler_xyz")

    @property
    def converts(self) -> bool:
        """Whether the source's numbers become others."""
        return self.target != self.form

    @property
    def width(self) -> int:
        """Its width once it is read."""
        return ROTATION_NUMBERS[self.target] if self.converts and self.target is not None else len(self.span)

    @property
    def _of_angles(self) -> bool:
        return self.form is not None and self.form.startswith(("euler", "axis_angle"))

    def named(self, names: Sequence[str]) -> ActionGroup:
        """The group of an ActionSpec. Raises InputError if such a group is impossible."""
        ends = {} if self.open is None or self.closed is None else {"open": self.open, "closed": self.closed}
        return ActionGroup(
            self.kind,
            tuple(names),
            unit=1.0 if self.converts else self.unit,
            delta=self.delta,
            arm=self.arm,
            form=self.target,
            continuous=self.continuous,
            percent=self.percent,
            **ends,
        )


class StateRotationConfig(Section):
    """A rotation among the numbers of a state, and the form that the policy is shown it in."""

    columns: tuple[Dimension, Dimension]  # the first dimension and the one after the last, of all that are joined
    form: RotationForm | OtherForm  # the source's
    into: RotationForm = "rotation_6d"  # which alone has neither two signs nor jumps
    unit: Unit = 1.0  # of angles: what 1 stands for, rad
    names: Names | None = None  # of what it is read into; null: rotation_0, rotation_1, …

    @model_validator(mode="after")
    def _agree(self) -> StateRotationConfig:
        _ = self.group  # whose mistakes are these
        return self

    @property
    def group(self) -> SourceGroupConfig:
        """Return this as a group of actions to go to."""
        return SourceGroupConfig(kind="rotation", **self.model_dump())


def check_apart(rotations: Sequence[StateRotationConfig]) -> list[StateRotationConfig]:
    """The rotations in the order of their columns. Raises ValueError where two have the same."""
    ordered = sorted(rotations, key=lambda rotation: rotation.columns)
    for first, second in pairwise(ordered):
        if second.columns[0] < first.columns[1]:
            raise ValueError(f"the columns {list(first.columns)} and {list(second.columns)} overlap")
    return ordered


def grown_by(rotations: Sequence[StateRotationConfig]) -> int:
    """The width that a state gains when these rotations are read."""
    return sum(rotation.group.width - len(rotation.group.span) for rotation in rotations)


StateRotations = Annotated[list[StateRotationConfig], AfterValidator(check_apart)]


def numbers_of_form(form: str) -> int:
    """The width of a rotation in a source's form."""
    return ROTATION_NUMBERS.get(form) or _OTHER_NUMBERS.get(form, 3)


class SourceActionsConfig(Section):
    """The meaning of the numbers of a source's actions. Dimensions that no range or group names are left out.

    Either ranges for one arm, each given as its first dimension and the one after its last, which Atlas turns into
    LIBERO's units and order; or `groups`, in order, for anything else.
    """

    position: tuple[Dimension, Dimension] = (0, 3)
    rotation: tuple[Dimension, Dimension] = (3, 6)  # an axis-angle; an empty range if there is none
    gripper: Dimension = 6
    gripper_open: float = -1.0  # the source's value
    gripper_closed: float = 1.0
    delta: bool = True  # false: a target pose
    position_unit_m: Unit | None = None  # what 1 means; null: 0.05 for deltas (LIBERO's), otherwise 1
    rotation_unit_rad: Unit | None = None  # what 1 means; null: 0.5 for deltas, otherwise 1
    control_hz: Unit | None = None  # actions per second; null: the dataset's fps
    # Instead of the ranges. Left out of the text that names caches, so that caches made with ranges keep their names.
    groups: Annotated[list[SourceGroupConfig], Field(min_length=1)] | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _agree(self) -> SourceActionsConfig:
        if self.groups is not None:
            return self._agreeing_groups(self.groups)
        if self.position[1] - self.position[0] not in (1, 2, 3):
            raise ValueError(
                f"position is {list(self.position)}, expected a range of 1 to 3 dimensions, such as [0, 3]"
            )
        if self.rotation[1] - self.rotation[0] not in (0, 3):
            raise ValueError(
                f"rotation is {list(self.rotation)}, expected a range of the 3 dimensions of an axis-angle, such as "
                "[3, 6], or an empty one, such as [3, 3]"
            )
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("position, rotation and gripper must not share dimensions, but two of them do")
        if self.gripper_open == self.gripper_closed:
            raise ValueError(f"gripper_open and gripper_closed are both {self.gripper_open:g}, and must differ")
        return self

    def _agreeing_groups(self, groups: Sequence[SourceGroupConfig]) -> SourceActionsConfig:
        for key, info in type(self).model_fields.items():
            if key not in ("groups", "control_hz") and getattr(self, key) != info.default:
                raise ValueError(f"groups and {key} are both set; set it in the group it belongs to")
        used = [column for group in groups for column in group.span]
        twice = next((column for place, column in enumerate(used) if column in used[:place]), None)
        if twice is not None:
            raise ValueError(f"two groups have the column {twice}")
        return self

    @property
    def gripper_stated(self) -> bool:
        """Whether the config says what is open and closed; otherwise the data may show a gripper from 0 to 1."""
        return bool(_GRIPPER_ENDS & self.model_fields_set)

    @model_serializer(mode="wrap")
    def _what_is_stated(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out gripper ends nobody has set: a rank or resumed run that reads this would take them as set."""
        written: dict[str, Any] = dump(self)
        return {k: v for k, v in written.items() if k not in _GRIPPER_ENDS or k in self.model_fields_set}

    @property
    def columns(self) -> list[int]:
        """The source's dimensions that are used."""
        if self.groups is not None:
            return [column for group in self.groups for column in group.span]
        return [*range(*self.position), *range(*self.rotation), self.gripper]
