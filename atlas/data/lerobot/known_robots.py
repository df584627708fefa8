"""The meaning of an action's numbers, told by LeRobot's names for the motors of robots that many people own.

The names and units are those of LeRobot's robot classes and of its published datasets. Joints of the small arms are in
degrees, or in -100..100 over each joint's calibrated range, and nothing in a dataset says which: values beyond 100 show
that they are degrees. Their grippers go from 0, closed, to 100, open.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.config.action_sections import SourceActionsConfig, SourceGroupConfig
from atlas.data.lerobot.info import Info
from atlas.errors import InputError
from atlas.system.documents import parse_json, read_json
from atlas.types import Arm

_SMALL_ARM = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
_VIPERX = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_VIPERX_SHADOWS = ("waist", "shoulder", "shoulder_shadow", "elbow", "elbow_shadow", *_VIPERX[3:])
_FRANKA = tuple(f"joint {number}" for number in range(7))
_ARMS = {_SMALL_ARM: "SO-100, SO-101 or Koch", _VIPERX: "ALOHA", _VIPERX_SHADOWS: "ALOHA", _FRANKA: "Franka"}
_BASE = ("x.vel", "y.vel", "theta.vel")  # LeKiwi's: m/s, m/s, degrees/s
_FRANKA_TYPES = ("franka", "panda", "fr3", "droid")
_FRANKA_JOINT = re.compile(r"(?:(?:panda|fr3|franka)_)?(?:joint|joint_position|q)_?(\d)")
_PREFIX = re.compile(r"(?:main_|arm_|follower_)?(?:(left|right)_)?(?:arm_)?")
_SAYS_NOTHING = re.compile(r"(?:motor|joint|action|dim|axis)?s?_?\d*")

# What a robot_type says where its numbers have no names: each is in LeRobot's own order.
_SMALL_ARM_NAMES = tuple(f"{name}.pos" for name in (*_SMALL_ARM, "gripper"))
_BY_TYPE = {
    "so100": _SMALL_ARM_NAMES,
    "so101": _SMALL_ARM_NAMES,
    "koch": _SMALL_ARM_NAMES,
    "bi_so100": tuple(f"{arm}_{name}" for arm in ("left", "right") for name in _SMALL_ARM_NAMES),
    "bi_so101": tuple(f"{arm}_{name}" for arm in ("left", "right") for name in _SMALL_ARM_NAMES),
    "lekiwi": (*(f"arm_{name}" for name in _SMALL_ARM_NAMES), *_BASE),
    "aloha": tuple(f"{arm}_{name}" for arm in ("left", "right") for name in (*_VIPERX, "gripper")),
}
_DEGREE = math.pi / 180
_MOST_RAD = 7.0  # a joint of these robots turns less far
_MOST_PERCENT = 105.0
_SLACK = 0.5  # how far beyond its ends a gripper of a known robot may be told to go, as a share of their distance
_UNKNOWN = "nothing tells"
_OF_METRES = 0.1  # a gripper that never exceeds this is measured by its width


@dataclass(frozen=True)
class KnownRobot:
    """A robot that was recognised, and how its actions are read."""

    name: str
    source: SourceActionsConfig
    notes: tuple[str, ...]  # what was taken for what, and why, in sentences
    doubt: str | None = None  # what the dataset does not settle, with what to say if it was taken wrongly

    @property
    def slack(self) -> float:
        """The distance that a gripper's values may lie beyond open and closed."""
        return _SLACK

    def check(self, values: np.ndarray, names: Sequence[str], where: str) -> None:
        """Raises InputError if numbers [N, source dimensions] are not what their names were taken for: the dataset's
        statistics, which decided the unit, were wrong."""
        for group in self.source.groups or ():
            most = _MOST_PERCENT if group.percent else _MOST_RAD if group.unit == 1 else math.inf
            if group.kind != "joints":
                continue
            for column in group.span:
                reach = float(np.abs(values[:, column]).max())
                if reach > most:
                    read = "LeRobot's -100..100" if group.percent else "radians"
                    raise InputError(
                        f"{where}: '{names[column]}' reaches {reach:g}, but is read as {read}, as the dataset's own "
                        f"statistics say. Say what it is in data.features.action_spec:\n\n{self.yaml(degrees=True)}"
                    )

    def yaml(self, degrees: bool = False) -> str:
        """The groups as a config says them; with `degrees`, all joints in degrees."""
        groups = []
        for group in self.source.groups or ():
            if degrees and group.kind == "joints":
                group = group.model_copy(update={"unit": _DEGREE, "percent": False})
            groups.append(group)
        return _groups_yaml(groups)


def known_robot(info: Info, names: Sequence[str], width: int, keys: Sequence[str]) -> KnownRobot | None:
    """The robot whose action has these names, or whose robot_type says what its `width` unnamed numbers are; None for
    any other. keys: the action's features. Raises InputError if the unit cannot be told."""
    own, known_by = tuple(names), "their names"
    if len(own) != width or all(_SAYS_NOTHING.fullmatch(name.lower()) for name in own):
        typed = _named_by_type(info.robot, width)
        if typed is not None:
            own, known_by = typed, f"robot_type '{info.robot}'"
    parts = [_part(name, info.robot) for name in own]
    if len(own) != width or None in parts:
        return None
    found = list(_arms([part for part in parts if part is not None]))
    if not found or any(arm is None for arm in found):
        return None
    limbs = [limb for limb in found if limb is not None]
    sides = [limb.side for limb in limbs if limb.kind != "base"]
    if not sides or len(limbs) > len(sides) + 1 or (len(sides) > 1 and sorted(map(str, sides)) != ["left", "right"]):
        return None
    return _read(info, own, known_by, limbs, _extremes(info, keys, width))


@dataclass(frozen=True)
class _Part:
    side: Arm | None
    name: str  # without its side, its prefix and its suffix
    suffix: str  # ".pos" of LeRobot's newer robots


@dataclass(frozen=True)
class _Limb:
    """One arm's numbers, or a base's."""

    kind: str  # of _ARMS' values, or "base"
    side: Arm | None
    first: int
    joints: int
    suffix: str = ""


def _named_by_type(robot: str | None, width: int) -> tuple[str, ...] | None:
    kinds = sorted(_BY_TYPE, key=len, reverse=True)
    kind = next((kind for kind in kinds if robot is not None and robot.lower().startswith(kind)), None)
    return _BY_TYPE[kind] if kind is not None and len(_BY_TYPE[kind]) == width else None


def _part(name: str, robot: str | None) -> _Part | None:
    lower = name.lower()
    if lower in _BASE:
        return _Part(None, lower, ".vel")
    suffix = ".pos" if lower.endswith(".pos") else ""
    lower = lower.removesuffix(suffix)
    franka = _FRANKA_JOINT.fullmatch(lower)
    if franka is not None and (_is_franka(robot) or lower.startswith(("panda", "fr3", "franka"))):
        return _Part(None, f"joint {franka[1]}", suffix)
    prefix = _PREFIX.match(lower)
    assert prefix is not None
    side: Arm | None = "left" if prefix[1] == "left" else "right" if prefix[1] == "right" else None
    bare = lower[prefix.end() :]
    if bare in ("gripper", "gripper_position"):
        return _Part(side, "gripper", suffix)
    known = {*_SMALL_ARM, *_VIPERX_SHADOWS}
    return _Part(side, bare, suffix) if bare in known else None


def _is_franka(robot: str | None) -> bool:
    return robot is not None and any(kind in robot.lower() for kind in _FRANKA_TYPES)


def _arms(parts: Sequence[_Part]) -> Iterator[_Limb | None]:
    """The limbs one after the other; None where numbers follow that are no limb of a known robot."""
    place = 0
    names = tuple(part.name for part in parts)
    while place < len(parts):
        if names[place : place + 3] == _BASE:
            yield _Limb("base", None, place, 3)
            place += 3
            continue
        for joints, kind in _ARMS.items():
            end = place + len(joints)
            shifted = tuple(f"joint {number + 1}" for number in range(7)) if kind == "Franka" else joints
            whole = names[place:end] in (joints, shifted) and names[end : end + 1] == ("gripper",)
            if whole and len({part.side for part in parts[place : end + 1]}) == 1:
                yield _Limb(kind, parts[place].side, place, len(joints), parts[place].suffix)
                place = end + 1
                break
        else:
            yield None
            return


def _read(
    info: Info, names: Sequence[str], known_by: str, limbs: Sequence[_Limb], extremes: np.ndarray | None
) -> KnownRobot | None:
    """The groups of the limbs. extremes: float64 [2, width], the smallest and largest values; None if unknown."""
    groups: list[SourceGroupConfig] = []
    notes, doubt, unknown = [], None, False
    arms = [limb for limb in limbs if limb.kind != "base"]
    for limb in limbs:
        if limb.kind == "base":
            groups += _base_groups(limb.first, names)
            notes.append(f"{', '.join(names[limb.first : limb.first + 3])}: velocities in m/s, m/s and degrees/s")
            continue
        end = limb.first + limb.joints
        side = limb.side if len(arms) > 1 else None
        reach = None if extremes is None else float(np.abs(extremes[:, limb.first : end]).max())
        unit, read, why = _joint_unit(limb, reach)
        opened, closed = (100.0, 0.0) if limb.kind.startswith("SO") or limb.suffix else (1.0, 0.0)
        if limb.kind == "Franka":
            opened, closed = 0.0, 1.0
            if extremes is not None and not _OF_METRES < extremes[1, end] <= 1.1:
                return None  # a width in metres, or a count of steps: not DROID's share
        groups += [
            SourceGroupConfig(kind="joints", columns=(limb.first, end), names=list(names[limb.first : end]), arm=side,
                              unit=unit, percent=unit == 1 and "100" in read),
            SourceGroupConfig(kind="gripper", columns=end, names=[names[end]], arm=side, continuous=True,
                              open=opened, closed=closed),
        ]  # fmt: skip
        which = f"the {side} arm's " if side else ""
        notes.append(f"{which}{', '.join(names[limb.first : end])}: joints to go to, in {read} ({why})")
        notes.append(f"{names[end]}: {which}gripper from {closed:g} (closed) to {opened:g} (open)")
        unknown = unknown or why == _UNKNOWN
        if "no joint" in why:
            doubt = "its joints may also be degrees, which nothing in it would show"
    if unknown:
        raise InputError(
            f"{info.path}: '{names[arms[0].first]}' and the joints after it may be in degrees or in LeRobot's "
            "-100..100, and the dataset has no statistics (meta/stats.json, or episodes_stats.jsonl) that would show "
            "which. Say it in data.features.action_spec, for -100..100 with percent: true instead of the unit:\n\n"
            + _groups_yaml(groups)
        )
    kinds = list(dict.fromkeys(limb.kind for limb in arms))
    robot = " and ".join(kinds) + (" with a mobile base" if len(limbs) > len(arms) else "")
    robot = f"two arms of {robot}" if len(arms) > 1 and kinds != ["ALOHA"] else robot
    head = f"actions are those of {robot}, by {known_by}"
    return KnownRobot(robot, SourceActionsConfig(groups=groups), (head, *notes), doubt)


def _base_groups(first: int, names: Sequence[str]) -> list[SourceGroupConfig]:
    """LeKiwi's base; two groups, as a group has one unit."""
    return [
        SourceGroupConfig(kind="base", columns=(first, first + 2), names=list(names[first : first + 2])),
        SourceGroupConfig(kind="base", columns=first + 2, names=[names[first + 2]], unit=_DEGREE),
    ]


def _joint_unit(limb: _Limb, reach: float | None) -> tuple[float, str, str]:
    """Return what 1 stands for, what the numbers are, and why."""
    small = limb.kind.startswith("SO") or limb.suffix == ".pos"
    if small and limb.suffix != ".pos":
        return _DEGREE, "degrees", "as LeRobot's older robots have them"
    if small and reach is None:
        return _DEGREE, "degrees", _UNKNOWN
    if small and reach is not None and reach <= 100 + 1e-3:
        return 1.0, "LeRobot's -100..100 over each joint's range", "no joint lies beyond 100"
    if small:
        return _DEGREE, "degrees", f"a joint reaches {reach:.4g}, beyond LeRobot's -100..100"
    if reach is not None and reach > _MOST_RAD:
        return _DEGREE, "degrees", f"a joint reaches {reach:.4g}, too far for radians"
    return 1.0, "radians", "as this robot's datasets have them"


def _extremes(info: Info, keys: Sequence[str], width: int) -> np.ndarray | None:
    """float64 [2, width]: the smallest and largest values of the action, from the dataset's statistics; None if it has
    none that can be read. What is decided by them is checked again when the numbers are read."""
    try:
        found = [[_both(stats[key]) for key in keys] for stats in _statistics(info)]
        rows = np.array([np.concatenate(each, axis=1) for each in found], np.float64)  # [files or episodes, 2, width]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if rows.ndim != 3 or rows.shape[1:] != (2, width) or not np.isfinite(rows).all():
        return None
    return np.stack([rows[:, 0].min(0), rows[:, 1].max(0)])


def _both(stats: dict[str, Any]) -> np.ndarray:
    """[2, width]"""
    return np.array([np.ravel(stats["min"]), np.ravel(stats["max"])], np.float64)


def _statistics(info: Info) -> Iterator[dict[str, Any]]:
    """Return the statistics of the whole dataset, or of each episode in version 2.1."""
    whole, episodes = info.root / "meta" / "stats.json", info.root / "meta" / "episodes_stats.jsonl"
    if whole.is_file():
        yield read_json(whole)
        return
    with episodes.open("rb") as lines:
        for line in lines:
            yield parse_json(line)["stats"]


# ---- YAML to paste -----------------------------------------------------------------------------------------


def _groups_yaml(groups: Sequence[SourceGroupConfig]) -> str:
    """The groups as a config says them."""
    sections = []
    for group in groups:
        columns = list(group.columns) if isinstance(group.columns, tuple) else group.columns
        values = group.model_dump(exclude_defaults=True, exclude={"columns", "names"})
        sections.append({"kind": group.kind, "columns": columns} | {k: _short(v) for k, v in values.items()})
    return _block(sections)


def suggested_yaml(names: Sequence[str], width: int) -> str:
    """A guess at what the numbers of an unknown robot are, to correct and paste."""
    called = list(names) if len(names) == width else [f"number {i}" for i in range(width)]
    kinds = [_guess(name, place, width) for place, name in enumerate(called)]
    groups: list[dict[str, Any]] = []
    for place, (kind, side) in enumerate(kinds):
        last = groups[-1] if groups else None
        if last is not None and last["kind"] == kind != "gripper" and last.get("arm") == side:
            last["columns"][1] = place + 1
            continue
        group: dict[str, Any] = {"kind": kind, "columns": place if kind == "gripper" else [place, place + 1]}
        group |= {"arm": side} if side else {}
        group |= {"open": 1, "closed": 0, "continuous": True} if kind == "gripper" else {"unit": 1.0}
        groups.append(group | ({"form": "euler_xyz"} if kind == "rotation" else {}))
    return _block(groups)


def _guess(name: str, place: int, width: int) -> tuple[str, str | None]:
    lower = name.lower()
    side = next((arm for arm in ("left", "right") if re.search(rf"(?:^|[_.]){arm}(?:[_.]|$)", lower)), None)
    bare = re.sub(r"(?:^|[_.])(?:left|right)(?=[_.]|$)", "", lower).strip("_.")
    if "grip" in lower or (lower.startswith("number") and place == width - 1 and width > 1):
        return "gripper", side
    if lower.endswith(".vel"):
        return "base", side
    if bare in ("x", "y", "z", "dx", "dy", "dz", "ee.x", "ee.y", "ee.z", "eef_x", "eef_y", "eef_z"):
        return "position", side
    if bare in ("roll", "pitch", "yaw", "rx", "ry", "rz", "ee.wx", "ee.wy", "ee.wz"):
        return "rotation", side
    return "joints", side


def _block(groups: Sequence[dict[str, Any]]) -> str:
    lines = ["data:", "  features:", "    action_spec:", "      groups:"]
    for group in groups:
        fields = ", ".join(f"{key}: {_said(value)}" for key, value in group.items())
        lines.append(f"        - {{{fields}}}")
    return "\n".join(lines)


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value
