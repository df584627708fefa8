"""A LeRobot dataset's description of itself: meta/info.json of versions 3.0, 2.1 and 2.0."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlas.data.origin import mend
from atlas.errors import InputError, first_line
from atlas.system.documents import read_json
from atlas.system.paths import inside

INFO = "meta/info.json"
VERSIONS = ("v3.0", "v2.1", "v2.0")
_CHANNEL = ("channel", "channels", "c", "rgb")
_DEPTH = ("is_depth_map", "video.is_depth_map")  # how the versions mark a video of depth images
_PLAIN_NUMBER = re.compile(r"0?[1-9]?d?")  # how a template may format a number: 03d, 6d, or without a format
_LARGEST = 2**16  # dimension of a shape: pixels per side, or numbers per row
_DEEPEST = 8  # levels of nested names
_MOST_FILES = 10**9  # a larger number is not a file's
_FPS, _COUNT = (1e-3, 1e5), (1, 2**53)  # plausible ranges


@dataclass(frozen=True)
class Feature:
    """One column of a dataset, or one of its videos."""

    key: str
    dtype: str  # a numpy name, `image`, `video`, `string` or `language`
    shape: tuple[int, ...]
    names: tuple[str, ...]  # of its numbers, or of an image's dimensions; empty if not stated
    is_depth: bool = False  # whether the images are depth images, however many channels they have

    @property
    def is_camera(self) -> bool:
        return self._is_picture and self.channels == 3 and not self.is_depth

    @property
    def is_depth_camera(self) -> bool:
        return self._is_picture and self.is_depth

    @property
    def is_vector(self) -> bool:
        """Whether it is a row of numbers."""
        return self.dtype not in ("image", "video", "string", "language") and len(self.shape) == 1 and self.shape[0] > 0

    @property
    def _is_picture(self) -> bool:
        return self.dtype in ("image", "video") and len(self.shape) == 3 and min(self.shape) > 0

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
    """The parts of info.json that are used here."""

    path: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    episodes: int
    frames: int
    chunk: int  # episodes per folder, in versions 2
    data_path: str  # templates of the files' names
    video_path: str | None
    robot: str | None = None  # robot_type

    @property
    def one_file_an_episode(self) -> bool:
        return self.version.startswith("v2.")

    def data_file(self, **numbers: int) -> str:
        """The name of a data file, relative to the dataset's folder. Raises InputError for a wrong template."""
        return self._fill("data_path", self.data_path, numbers)

    def video_file(self, key: str, **numbers: int) -> str:
        """The same for a video."""
        assert self.video_path is not None
        return self._fill("video_path", self.video_path, {"video_key": key, **numbers})

    @property
    def root(self) -> Path:
        """The dataset's folder."""
        return self.path.parents[1]

    def _fill(self, name: str, template: str, values: Mapping[str, Any]) -> str:
        filled = _filled(template, values)
        if filled is None:
            raise InputError(
                f"{self.path}: {name} is '{template[:200]}', which has fields other than {', '.join(values)}, or a "
                "format that is not plain or a small width, such as {episode_index:06d}."
            )
        inside(self.root, filled, where=f"{self.path}: {name}", follow_links=True)
        return filled


def _filled(template: str, values: Mapping[str, Any]) -> str | None:
    """The template with its fields filled in; None if it has another field, or formats one unusually.

    `str.format` can do more, which is unsafe for text from outside: attributes, slices, unlimited widths.
    """
    found = []
    try:
        for text, part, form, conversion in string.Formatter().parse(template):
            found.append(text)
            if part is None:
                continue
            value = values.get(part)
            if value is None or conversion is not None or form is None:
                return None
            number = isinstance(value, int) and 0 <= value < _MOST_FILES
            if (form and not (number and _PLAIN_NUMBER.fullmatch(form))) or (isinstance(value, int) and not number):
                return None
            found.append(format(value, form))
    except ValueError:  # an unclosed brace
        return None
    return "".join(found)


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
        fps=_number(path, values, "fps", _FPS),
        features={key: _feature(path, key, feature) for key, feature in features.items()},
        episodes=int(_number(path, values, "total_episodes", _COUNT)),
        frames=int(_number(path, values, "total_frames", _COUNT)),
        chunk=int(_number(path, values, "chunks_size", _COUNT)),
        data_path=_template(path, "data_path", values.get("data_path")),
        video_path=None,
        robot=str(values["robot_type"]) if values.get("robot_type") is not None else None,
    )
    if any(feature.dtype == "video" for feature in info.features.values()):
        return replace(info, video_path=_template(path, "video_path", values.get("video_path")))
    return info


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({first_line(error)}). {mend(path)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object.")
    return values


def _dictionary(path: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: '{key}' is {found!r}, expected an object with the dataset's features.")
    return found


def _number(path: Path, values: dict[str, Any], key: str, limits: tuple[float, float]) -> float:
    found = values.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float) or not limits[0] <= found <= limits[1]:
        raise InputError(f"{path}: '{key}' is {_shown(found)}, expected a number above 0.")
    return float(found)


def _template(path: Path, key: str, found: Any) -> str:
    if not isinstance(found, str):
        raise InputError(f"{path}: '{key}' is {_shown(found)}, expected a path within the dataset's folder.")
    return found


def _feature(path: Path, key: str, values: Any) -> Feature:
    """A feature as described; one with an impossible shape is refused when it is used."""
    if not isinstance(values, dict) or not isinstance(values.get("dtype"), str):
        raise InputError(
            f"{path}: the feature '{key[:200]}' is {_shown(values)}, expected an object with dtype and shape."
        )
    shape = values.get("shape")
    shape = shape if isinstance(shape, list) and all(type(n) is int and 0 <= n <= _LARGEST for n in shape) else []
    about = [values, *(part for part in (values.get("info"), values.get("video_info")) if isinstance(part, dict))]
    depth = any(part.get(name) is True for part in about for name in _DEPTH)
    return Feature(key, values["dtype"], tuple(shape), tuple(_names(values.get("names"))), depth)


def _names(values: Any, depth: int = 0) -> list[str]:
    """The names of a feature's dimensions: a list, or lists by kind (`{"motors": […]}`), or null."""
    if isinstance(values, dict):
        return [name for part in values.values() for name in _names(part, depth + 1)] if depth < _DEEPEST else []
    if isinstance(values, list):
        return [str(name) for name in values] if depth < _DEEPEST else []
    return []


def _shown(value: Any) -> str:
    """A value from somebody's file, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
