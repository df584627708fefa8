"""The features of a LeRobot dataset that are Atlas's cameras, proprio and actions, and what their numbers mean."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atlas.config.action_sections import SourceActionsConfig, StateRotationConfig, grown_by
from atlas.config.data_sections import FeaturesConfig
from atlas.data.lerobot.action_columns import action_spec, describe, state_names
from atlas.data.lerobot.extras import Extras
from atlas.data.lerobot.info import Feature, Info
from atlas.data.lerobot.known_robots import KnownRobot, known_robot, suggested_yaml
from atlas.data.orientation import Orientation
from atlas.errors import InputError, did_you_mean
from atlas.types import ActionSpec

logger = logging.getLogger(__name__)

_CAMERA_PREFIX = "observation.images."
_LIBERO_HZ = 20.0  # one row is one step of LIBERO's world, whatever fps a conversion is labelled with
_LIBERO_LABELS = (10.0, 20.0)  # the fps that its conversions are labelled with
_LIBERO_ROBOTS = ("panda", "franka", "libero", "unknown")  # what a conversion may call the robot, if anything
_JOINTS = re.compile(r"joint|motor_|waist|shoulder|elbow|forearm|wrist|qpos", re.IGNORECASE)

# The beginnings of the SHA-256 of the 112 instructions of its 130 tasks; a test computes them from LIBERO's package.
_LIBERO_DIGESTS = frozenset(
    (
        "01d5e1 02de9d 02f15a 0a91f8 0a9dc6 100273 112b7c 11d41c 11e2c5 12f791 1c7346 1ccbc4 1d600d 21b143 22f3a8 "
        "24b244 289571 28bb9b 28f14f 2a3da0 2bbb63 2bfccb 2cd84f 2d112b 2d3b6b 3029dc 313c1d 318b25 334bf2 369dbc "
        "37a511 38c455 392955 39b87b 3e827a 3f54cf 424d2d 4332cf 4844e3 4cfb3a 4d924e 504908 5167c0 548325 565459 "
        "5a8c05 5c90fc 6172fe 62903e 64fd2f 652634 720bb6 724038 72763d 72ff4c 75b992 77b616 7a10d2 7bfd2c 7c3a31 "
        "7e2a1c 80efb5 840539 84ae20 852862 8959d2 8bf2b2 8c7ac2 8d3beb 8e2871 920620 941990 94d883 968282 978237 "
        "98fef9 9b1b5e 9b63de 9bc00c 9bd1c7 9bfa1d 9f1272 a3a591 a5f3ad a78e12 a7a798 aafb15 ad9355 ae9434 b16a00 "
        "b8dee7 bfc137 c0d1b2 c0d6cc c732c2 c79c68 ca7bc3 d48c3c da5da5 dae7a0 dbbf90 e0d12a e1bde1 e54b8c e61b2e "
        "ec1ac4 ec6137 f33033 f487a7 fb511f fd363f ffca1c"
    ).split()
)


@dataclass(frozen=True)
class Libero:
    """The names in a published conversion of LIBERO."""

    sets: str
    cameras: Mapping[str, str]
    proprio: str = "observation.state"
    action: str = "action"
    # They came through RLDS, for which the raw, upside-down images were rotated by 180 degrees.
    orientation: Orientation = "mirrored"


_WORLD, _WRIST = "agentview", "eye_in_hand"
_IMAGES = _CAMERA_PREFIX + "image"
LIBERO_SETS = (
    Libero("lerobot/libero and HuggingFaceVLA/libero", {_WORLD: _IMAGES, _WRIST: _IMAGES + "2"}),
    Libero("lerobot/libero_…_image", {_WORLD: _IMAGES, _WRIST: _CAMERA_PREFIX + "wrist_image"}),
    Libero("physical-intelligence/libero", {_WORLD: "image", _WRIST: "wrist_image"}, "state", "actions"),
)


@dataclass(frozen=True)
class Features:
    """The features that are read from a dataset, and how."""

    cameras: Mapping[str, Feature]  # by Atlas's names, in order
    proprio: tuple[Feature, ...]
    action: Feature  # of several, joined, the key is what a message calls them
    action_keys: tuple[str, ...]
    source: SourceActionsConfig
    action_spec: ActionSpec
    orientation: Orientation
    libero: str | None  # which conversion of LIBERO it is
    stated: bool  # whether the config, or Atlas when it wrote them, says what the actions mean
    gripper_stated: bool = False  # whether the config says which gripper values are open and closed
    unlike: str | None = None  # why it is not taken for LIBERO although its features have a conversion's names
    depth: tuple[str, ...] = ()  # depth images, which are left out
    robot: KnownRobot | None = None  # whose names the actions have, if nothing else says what they mean
    rotations: tuple[StateRotationConfig, ...] = ()  # of the proprio, that are read into another form

    @property
    def stored_proprio_dim(self) -> int:
        """The number of proprio's numbers in the dataset."""
        return sum(feature.shape[0] for feature in self.proprio)

    @property
    def proprio_dim(self) -> int:
        """The number of proprio's numbers once they are read."""
        return self.stored_proprio_dim + grown_by(self.rotations)

    @property
    def proprio_names(self) -> list[str]:
        """The dataset's names for the numbers of the proprio; fewer if it does not name all."""
        names = [name for feature in self.proprio for name in feature.names]
        if not self.rotations:
            return names
        made = [f"state {place}" for place in range(len(names), self.stored_proprio_dim)]
        return state_names([*names, *made], self.rotations)

    @property
    def video_keys(self) -> list[str]:
        return [feature.key for feature in self.cameras.values() if feature.dtype == "video"]


def find_features(
    info: Info,
    config: FeaturesConfig | None = None,
    orientation: Orientation | None = None,
    cameras: Sequence[str] | None = None,
    extras: Extras | None = None,
    tasks: Sequence[str] = (),
) -> Features:
    """Settle what is read: from the config, otherwise from what Atlas noted when it wrote the dataset, otherwise from
    the names of a known conversion of LIBERO if robot, rate and tasks are LIBERO's too, otherwise from LeRobot's names.

    cameras: the wanted ones, None for all. tasks: the dataset's instructions. Raises InputError that names the key and
    the feature.
    """
    config = config or FeaturesConfig()
    libero = None if extras is not None else _named_as(info)
    unlike = None if libero is None else _unlike_libero(info, tasks)
    if unlike is not None:
        libero = None
    keys = config.cameras or (libero.cameras if libero else _cameras_by_name(info))
    found = {name: _camera(info, name, key) for name, key in keys.items()}
    unknown = [name for name in cameras or [] if name not in found]
    if unknown:
        raise InputError(f"data.cameras names {unknown}, but {info.path.parents[1]} has the cameras {list(found)}.")
    default_proprio = libero.proprio if libero else _first(info, ("observation.state", "state"), "proprio")
    proprio = config.proprio or default_proprio
    named = config.action or (libero.action if libero else _first(info, ("action", "actions"), "action"))
    parts = [_vector(info, key, "action") for key in ([named] if isinstance(named, str) else named)]
    action, action_keys = joined(parts), tuple(part.key for part in parts)
    stated = config.action_spec or (extras.source_actions if extras is not None else None)
    robot = None
    if stated is None and libero is None:
        robot = known_robot(info, action.names, action.shape[0], action_keys)
    source = stated or (robot.source if robot else SourceActionsConfig(control_hz=_LIBERO_HZ if libero else None))
    if stated is not None:
        _check_fits(info, action, source)
    elif libero is None and robot is None:
        _check_assumed(info, action)
    proprios = tuple(_vector(info, key, "proprio") for key in ([proprio] if isinstance(proprio, str) else proprio))
    _check_rotations(info, proprios, config.proprio_rotations)
    return Features(
        cameras={name: feature for name, feature in found.items() if cameras is None or name in cameras},
        proprio=proprios,
        action=action,
        action_keys=action_keys,
        source=source,
        action_spec=action_spec(source, info.fps, action.names),
        orientation=orientation or (libero.orientation if libero else extras.orientation if extras else "upright"),
        libero=libero.sets if libero else None,
        stated=stated is not None,
        gripper_stated=config.action_spec is not None and config.action_spec.gripper_stated,
        unlike=unlike,
        depth=tuple(key for key, feature in info.features.items() if feature.is_depth_camera),
        robot=robot,
        rotations=tuple(config.proprio_rotations),
    )


def joined(parts: Sequence[Feature]) -> Feature:
    """Several features' numbers as one feature's, in order; a part without names is called by its key."""
    if len(parts) == 1:
        return parts[0]
    names: list[str] = []
    for part in parts:
        short, width = part.key.rpartition(".")[2], part.shape[0]
        made = [short] if width == 1 else [f"{short}_{number}" for number in range(width)]
        names += part.names if len(part.names) == width else made
    if len(set(names)) < len(names):
        names = [f"{part.key}_{number}" for part in parts for number in range(part.shape[0])]
    return Feature("+".join(p.key for p in parts), parts[0].dtype, (sum(p.shape[0] for p in parts),), tuple(names))


def _named_as(info: Info) -> Libero | None:
    """The conversion of LIBERO whose cameras, state and actions the dataset has, and no other camera."""
    cameras = {key for key, feature in info.features.items() if feature.is_camera}
    for libero in LIBERO_SETS:
        widths = [info.features[key].shape for key in (libero.proprio, libero.action) if key in info.features]
        if cameras == set(libero.cameras.values()) and widths == [(8,), (7,)]:
            return libero
    return None


def _unlike_libero(info: Info, tasks: Sequence[str]) -> str | None:
    """Name what shows that a dataset is not LIBERO although its features have LIBERO's names; None if nothing does.

    The names alone prove little: people record their own robots with the script that converted LIBERO.
    """
    if info.robot is not None and not any(name in info.robot.lower() for name in _LIBERO_ROBOTS):
        return f"its robot_type is '{info.robot}'"
    if info.fps not in _LIBERO_LABELS:
        return f"its fps is {info.fps:g}"
    other = next((text for text in tasks if not is_libero_task(text)), None)
    if other is not None:
        return f"'{other}' is not one of LIBERO's tasks"
    return None if tasks else "it has no tasks"


def _cameras_by_name(info: Info) -> dict[str, str]:
    """All cameras, named by what follows `observation.images.` in their keys; none where all is in the numbers."""
    keys = [key for key, feature in info.features.items() if feature.is_camera]
    if not keys and any(feature.is_depth_camera for feature in info.features.values()):
        raise InputError(
            f"{info.path}: none of the features is a video or image with 3 channels other than depth images."
        )
    return {key.removeprefix(_CAMERA_PREFIX): key for key in keys}


def _camera(info: Info, name: str, key: str) -> Feature:
    setting = f"data.features.cameras.{name}"
    feature = _feature(info, key, setting, [k for k, f in info.features.items() if f.is_camera])
    if not feature.is_camera:
        raise InputError(
            f"{setting}: '{key}' is a {feature.dtype} of shape {list(feature.shape)}"
            f"{', of depth,' if feature.is_depth else ''} in {info.path}, expected a video or image with 3 "
            "channels."
        )
    return feature


def _vector(info: Info, key: str, setting: str) -> Feature:
    setting = f"data.features.{setting}"
    feature = _feature(info, key, setting, _vectors(info))
    if not feature.is_vector:
        raise InputError(
            f"{setting}: '{key}' is a {feature.dtype} of shape {list(feature.shape)} in {info.path}, expected numbers "
            "of one dimension."
        )
    return feature


def _feature(info: Info, key: str, setting: str, candidates: Sequence[str]) -> Feature:
    if key not in info.features:
        raise InputError(
            f"{setting}: {info.path} has no feature '{key}'.{did_you_mean(key, candidates)} It has {list(candidates)}."
        )
    return info.features[key]


def _first(info: Info, names: Sequence[str], setting: str) -> str:
    found = next((name for name in names if name in info.features), None)
    if found is None:
        raise InputError(
            f"{info.path} has no feature '{names[0]}'. Name the right one in data.features.{setting}; it has "
            f"{_vectors(info)}."
        )
    return found


def _vectors(info: Info) -> list[str]:
    always = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    return [key for key, feature in info.features.items() if feature.is_vector and key not in always]


def _check_fits(info: Info, action: Feature, source: SourceActionsConfig) -> None:
    needed = max(source.columns) + 1
    if needed > action.shape[0]:
        raise InputError(
            f"data.features.action_spec uses {needed} dimensions, but '{action.key}' in {info.path} has "
            f"{action.shape[0]}{_named(action)}."
        )


def _check_rotations(info: Info, proprio: Sequence[Feature], rotations: Sequence[StateRotationConfig]) -> None:
    width = sum(feature.shape[0] for feature in proprio)
    if rotations and rotations[-1].columns[1] > width:
        whole = joined(proprio)
        raise InputError(
            f"data.features.proprio_rotations names the dimensions {list(rotations[-1].columns)}, but '{whole.key}' in "
            f"{info.path} has {width}{_named(whole)}."
        )


def _check_assumed(info: Info, action: Feature) -> None:
    """Refuse actions that cannot be LIBERO's where nothing says what they are."""
    width, libero = action.shape[0], ActionSpec().dim
    if width != libero:
        why = f"'{action.key}' has {width} numbers{_named(action)}, but LIBERO's actions have {libero}"
    elif any(_JOINTS.search(name) for name in action.names):
        why = f"'{action.key}' seems to hold joints{_named(action)}, not an end effector's motion"
    else:
        return
    raise InputError(
        f"{info.path}: {why}. Say which numbers are what in data.features.action_spec, such as "
        "{position: [0, 3], rotation: [3, 6], gripper: 6, delta: true, position_unit_m: 1.0}, or in groups. To "
        "paste into the config, once every kind, unit (what 1 stands for: m, rad) and open and closed is right:\n\n"
        + suggested_yaml(action.names, width)
    )


def _named(action: Feature) -> str:
    return f" ({', '.join(action.names)})" if action.names else ""


def report(info: Info, features: Features, orientation: Orientation | None) -> None:
    """Log what was settled, and warn of what was assumed. orientation: the one that was asked for."""
    cameras = ", ".join(f"{name} = {feature.key}" for name, feature in features.cameras.items())
    proprio = ", ".join(feature.key for feature in features.proprio)
    turned = [f"{list(r.columns)} {r.form} read as {r.into}" for r in features.rotations]
    proprio += f" ({', '.join(turned)})" if turned else ""
    if features.robot is not None:
        logger.info("%s: %s.", info.path.parents[1], "; ".join(features.robot.notes))
    logger.info(
        "%s: LeRobot %s%s; cameras %s, stored %s; proprio = %s; actions = %s: %s.",
        info.path.parents[1],
        info.version,
        f", names of {features.libero}" if features.libero else "",
        cameras,
        features.orientation,
        proprio,
        features.action.key,
        describe(features.source, features.action_spec),
    )
    if features.depth:
        logger.warning("%s: depth images are left out: %s.", info.path.parents[1], ", ".join(features.depth))
    assumed = []
    if features.unlike is not None:
        assumed.append(f"its features have LIBERO's names, but {features.unlike}")
    if features.robot is not None:
        if features.robot.doubt is not None:
            logger.warning(
                "%s: %s. If so, say it in the config:\n\n%s",
                info.path.parents[1],
                features.robot.doubt,
                features.robot.yaml(degrees=True),
            )
    elif not features.stated and features.libero is None:
        assumed.append("its actions are taken for LIBERO's; data.features.action_spec says what they are")
    if orientation is None and features.libero is None and features.robot is None:
        assumed.append("its images are taken to be stored upright; data.orientation says how they are")
    if assumed:
        logger.warning("%s is not a dataset that Atlas knows: %s.", info.path.parents[1], "; ".join(assumed))


# ---- LIBERO's instructions, without its package ----------------------------------------------------------


def is_libero_task(text: str) -> bool:
    """Whether a text is one of LIBERO's instructions, however it is written: `Open_the_microwave.` is."""
    return libero_digest(text) in _LIBERO_DIGESTS


def libero_digest(text: str) -> str:
    """The part of an instruction's hash that is stored here."""
    words = " ".join(text.lower().replace("_", " ").rstrip(". ").split())
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:6]
