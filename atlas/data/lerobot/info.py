"""What a LeRobot dataset says of itself: meta/info.json of the versions 3.0, 2.1 and 2.0."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from atlas.errors import InputError

INFO = "meta/info.json"
VERSIONS = ("v3.0", "v2.1", "v2.0")
_CHANNEL = ("channel", "channels", "c", "rgb")


@dataclass(frozen=True)
class Feature:
    """One column of a dataset, or one video of it."""

    key: str
    dtype: str  # a numpy name, `image`, `video` or `string`
    shape: tuple[int, ...]
    names: tuple[str, ...]  # of its numbers, or of an image's dimensions; empty where they are not said

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("image", "video") and len(self.shape) == 3 and self.channels == 3

    @property
    def is_vector(self) -> bool:
        """Whether it is a row of numbers."""
        return self.dtype not in ("image", "video", "string") and len(self.shape) == 1

    @property
    def channels(self) -> int:
        return self.shape[0] if self._channel_first else self.shape[-1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a camera's images."""
        height, width = self.shape[1:] if self._channel_first else self.shape[:2]
        return height, width

    @property
    def _channel_first(self) -> bool:
        if len(self.names) == 3:
            return self.names[0].lower() in _CHANNEL
        return self.shape[0] == 3 and self.shape[-1] != 3


@dataclass(frozen=True)
class Info:
    """The parts of info.json that are used here; others are left to others."""

    path: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    episodes: int
    frames: int
    chunk: int  # episodes a folder, in the versions 2
    data_path: str  # templates of the files' names
    video_path: str | None

    @property
    def one_file_an_episode(self) -> bool:
        return self.version.startswith("v2.")

    def data_file(self, **numbers: int) -> str:
        """The name of a data file, relative to the dataset's folder. Raises InputError for a wrong template."""
        return self._fill("data_path", self.data_path, numbers)

    def video_file(self, key: str, **numbers: int) -> str:
        """Likewise, of a video."""
        assert self.video_path is not None
        return self._fill("video_path", self.video_path, {"video_key": key, **numbers})

    def _fill(self, name: str, template: str, values: Mapping[str, Any]) -> str:
        try:
            return template.format(**values)
        except (LookupError, ValueError, AttributeError):
            raise InputError(
                f"{self.path}: {name} is '{template}', which has other parts than {', '.join(values)}."
            ) from None


def read_info(root: Path) -> Info:
    """Read and check a dataset's info.json. Raises InputError that names the key."""
    path = root / INFO
    values = _read_json(path)
    version = values.get("codebase_version")
    if version not in VERSIONS:
        raise InputError(
            f"{path}: codebase_version is {version!r}; Atlas reads {', '.join(VERSIONS)}. Convert the dataset with "
            "LeRobot's own scripts."
        )
    features = _dictionary(path, values, "features")
    info = Info(
        path=path,
        version=version,
        fps=_number(path, values, "fps"),
        features={key: _feature(path, key, feature) for key, feature in features.items()},
        episodes=int(_number(path, values, "total_episodes")),
        frames=int(_number(path, values, "total_frames")),
        chunk=int(_number(path, values, "chunks_size")),
        data_path=_template(path, "data_path", values.get("data_path")),
        video_path=None,
    )
    if any(feature.dtype == "video" for feature in info.features.values()):
        return Info(**{**info.__dict__, "video_path": _template(path, "video_path", values.get("video_path"))})
    return info


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); it may be truncated. Fetch it again.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object.")
    return values


def _dictionary(path: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: '{key}' is {found!r}, expected an object with the dataset's features.")
    return found


def _number(path: Path, values: dict[str, Any], key: str) -> float:
    found = values.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
        raise InputError(f"{path}: '{key}' is {found!r}, expected a number above 0.")
    return float(found)


def _template(path: Path, key: str, found: Any) -> str:
    if not isinstance(found, str) or PurePosixPath(found).is_absolute() or ".." in PurePosixPath(found).parts:
        raise InputError(f"{path}: '{key}' is {found!r}, expected a path within the dataset's folder.")
    return found


def _feature(path: Path, key: str, values: Any) -> Feature:
    if not isinstance(values, dict) or not isinstance(values.get("dtype"), str):
        raise InputError(f"{path}: the feature '{key}' is {values!r}, expected an object with dtype and shape.")
    if ".." in PurePosixPath(key).parts:  # it becomes part of a path
        raise InputError(f"{path}: a feature cannot be called '{key}'.")
    shape = values.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise InputError(f"{path}: the shape of '{key}' is {shape!r}, expected a list of numbers above 0.")
    return Feature(key, values["dtype"], tuple(shape), tuple(_names(values.get("names"))))


def _names(values: Any) -> list[str]:
    """The names of a feature's dimensions, which are a list, or lists by kind (`{"motors": […]}`), or null."""
    if isinstance(values, dict):
        return [name for part in values.values() for name in _names(part)]
    if isinstance(values, list):
        return [str(name) for name in values]
    return []
