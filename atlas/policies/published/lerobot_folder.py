"""LeRobot's folder of a policy: config.json, model.safetensors and processor files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas.data.lerobot.features import LIBERO_SETS
from atlas.errors import InputError
from atlas.registry.lerobot_policies import CONFIG_JSON, LEROBOT_BESIDE, LEROBOT_FILES, WEIGHTS
from atlas.registry.references import HUB, parse_hub
from atlas.system.documents import read_json
from atlas.system.hub import Alternative, fetch_folder
from atlas.types import ActionSpec

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"

IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
_IMAGE = "observation.image"  # the only camera of some datasets
_LARGEST = 65536
_MISSING = object()


@dataclass(frozen=True)
class LeRobotFolder:
    """A policy's folder and its config.json, whose values the methods return by key and type, or raise InputError."""

    path: Path
    config: Mapping[str, Any]
    called: str = field(default="", compare=False)  # the user's name for it, for messages

    @classmethod
    def open(cls, path: Path, kind: str | None = None, called: str | None = None) -> LeRobotFolder:
        """Read config.json. kind: the required `type`. Raises InputError."""
        file = path / CONFIG_JSON
        try:
            config = read_json(file)
        except FileNotFoundError:
            raise InputError(f"{path} is not a LeRobot policy: it has no {CONFIG_JSON}.") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read: {error}") from None
        if not isinstance(config, dict) or not isinstance(config.get("type"), str):
            raise InputError(f"{file} is not the config of a LeRobot policy: it has no type.")
        if kind is not None and config["type"] != kind:
            raise InputError(f"{called or path} is a policy of the type '{config['type']}'; expected '{kind}'.")
        return cls(path, config, called or str(path))

    @property
    def kind(self) -> str:
        """LeRobot's name for the type."""
        return str(self.config["type"])

    # ---- single values ---------------------------------------------------------------------------------------

    def wrong(self, key: str, expected: str) -> InputError:
        """The error for a wrong value."""
        found = self.config.get(key, _MISSING)
        what = "is missing" if found is _MISSING else f"is {found!r:.80}"
        return InputError(f"{self.path / CONFIG_JSON}: '{key}' {what}, expected {expected}.")

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = _LARGEST) -> int:
        value = self.config.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.config.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not -1e12 < value < 1e12:
            raise self.wrong(key, "a number")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None, one_of: Sequence[str] = ()) -> str:
        value = self.config.get(key, default)
        if not isinstance(value, str) or (one_of and value not in one_of):
            raise self.wrong(key, f"one of {', '.join(one_of)}" if one_of else "text")
        return value

    def pair(self, key: str, default: tuple[int, int] | None = None, most: int = 4096) -> tuple[int, int]:
        value = self.config.get(key, default)
        whole = isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value)
        if not whole or not all(1 <= v <= most for v in value):  # type: ignore[union-attr]
            raise self.wrong(key, f"two whole numbers from 1 to {most}")
        return tuple(value)  # type: ignore[arg-type]

    def refuse(self, off: Mapping[str, object], why: str) -> None:
        """Raise InputError for the first option with a value other than the given one: Atlas does not have it."""
        for key, value in off.items():
            if key in self.config and self.config[key] != value:
                raise InputError(
                    f"{self.path / CONFIG_JSON}: '{key}' is {self.config[key]!r:.80}; Atlas supports {self.kind} only "
                    f"with {value!r}: {why}."
                )

    # ---- features --------------------------------------------------------------------------------------------

    @property
    def cameras(self) -> tuple[str, ...]:
        """The names of its cameras in order, without LeRobot's prefix, empty slots included."""
        return tuple(camera_name(key) for key in self._shapes("input_features", "VISUAL"))

    @property
    def camera_shapes(self) -> dict[str, tuple[int, ...]]:
        """[3, height, width] by camera, from config.json."""
        return {camera_name(key): shape for key, shape in self._shapes("input_features", "VISUAL").items()}

    @property
    def state_dim(self) -> int:
        """The number of the state's numbers; 0 where there is no state."""
        found = self._shapes("input_features", "STATE")
        return found[STATE][0] if STATE in found else 0

    @property
    def action_dim(self) -> int:
        found = self._shapes("output_features", "ACTION")
        if ACTION not in found:
            raise self.wrong("output_features", f"a feature '{ACTION}'")
        return found[ACTION][0]

    def _shapes(self, group: str, kind: str) -> dict[str, tuple[int, ...]]:
        features = self.config.get(group)
        if not isinstance(features, dict):
            raise self.wrong(group, "features by name")
        found = {}
        for name, feature in features.items():
            shape = feature.get("shape") if isinstance(feature, dict) else None
            fits = isinstance(shape, list) and shape and all(type(n) is int and 1 <= n <= _LARGEST for n in shape)
            if not fits:
                raise InputError(f"{self.path / CONFIG_JSON}: the feature '{name}' in {group} has no shape.")
            if feature.get("type") == kind:
                found[name] = tuple(shape)  # type: ignore[arg-type]
        return found


def camera_name(feature: str) -> str:
    """The camera of a feature: 'top' for 'observation.images.top'."""
    return feature.removeprefix(IMAGES) if feature != _IMAGE else "image"


def feature_name(camera: str) -> str:
    """The inverse of `camera_name`."""
    return IMAGES + camera


def libero_cameras(folder: LeRobotFolder) -> dict[str, str] | None:
    """{the policy's camera: LIBERO's} for a policy with the cameras of a conversion of LIBERO; None for others."""
    for conversion in LIBERO_SETS:
        names = {camera_name(feature): camera for camera, feature in conversion.cameras.items()}
        if set(names) == set(folder.cameras) and folder.action_dim == ActionSpec().dim:
            return names
    return None


def find_lerobot(reference: str, key: str, weights: bool = True) -> Path:
    """The folder of a LeRobot policy: `hf:owner/name`, which is fetched into the hub's cache, or a local folder.

    weights: whether they are needed. key: the setting with the reference, for messages. Raises InputError.
    """
    if not reference.startswith(HUB):
        path = Path(os.path.expanduser(reference))
        if not path.is_dir():
            raise InputError(
                f"{key}: there is no folder {path}; give a folder with a LeRobot policy, or hf:owner/name."
            )
        needed = (CONFIG_JSON, WEIGHTS) if weights else (CONFIG_JSON,)
        missing = [name for name in needed if not (path / name).is_file()]
        if missing:
            raise InputError(f"{key}: the folder {path} is not a LeRobot policy: it lacks {' and '.join(missing)}.")
        return path
    name = parse_hub(reference)

    def complete(folder: Path) -> bool:
        return (folder / CONFIG_JSON).is_file() and (not weights or (folder / WEIGHTS).is_file())

    wanted = tuple(file for file in LEROBOT_FILES if weights or file != WEIGHTS)
    form = Alternative((*wanted, *LEROBOT_BESIDE), complete, subfolders=True)
    return fetch_folder(name, key, [form], f"it lacks {CONFIG_JSON}" + (f" or {WEIGHTS}" if weights else ""))
