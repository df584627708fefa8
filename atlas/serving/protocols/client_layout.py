"""A client's keys: from its messages to the observation that a policy takes, and back.

The common layouts are built in; a layout of your own is a file with the same three entries:

    cameras: {agentview: observation/image, eye_in_hand: observation/wrist_image}   # the policy's: the client's
    state: [observation/state]                                                      # joined, in this order
    instruction: prompt
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from atlas.config.action_sections import StateRotations, grown_by
from atlas.config.section import Names, Section
from atlas.data.lerobot.action_columns import convert_state
from atlas.data.sampling.history import ONE_FRAME, History
from atlas.errors import InputError, did_you_mean
from atlas.system.documents import read_yaml
from atlas.system.safe_text import printable
from atlas.types import Observation

AUTO = "auto"
_MOST_SIDE = 8192  # pixels
_LONGEST_INSTRUCTION = 10_000  # characters


class ClientLayout(Section):
    """The keys of a client's messages."""

    cameras: dict[str, str] = {}  # the policy's camera: the client's key; others by `camera_prefix` or their last word
    camera_prefix: str | None = None  # precedes the policy's name of a camera, where the client uses the same names
    state: Names  # keys whose numbers are joined in this order
    instruction: Annotated[list[str], Field(min_length=1)]  # the key, or alternatives of which a client sends one
    rotations: StateRotations = []  # of the state, as in data.features.proprio_rotations

    def camera_key(self, camera: str) -> str | None:
        """The client's key for one of the policy's cameras; None where the layout has none."""
        if camera in self.cameras:
            return self.cameras[camera]
        if self.camera_prefix is not None:
            return self.camera_prefix + camera
        return next((key for key in self.cameras.values() if re.split(r"[/.]", key)[-1] == camera), None)


_WORLD, _WRIST = "agentview", "eye_in_hand"
_PREFIX = "observation."
LAYOUTS = {
    "lerobot": ClientLayout(
        camera_prefix=f"{_PREFIX}images.", state=[f"{_PREFIX}state"], instruction=["task", "prompt", "instruction"]
    ),
    "libero": ClientLayout(
        cameras={_WORLD: "observation/image", _WRIST: "observation/wrist_image"},
        state=["observation/state"],
        instruction=["prompt"],
    ),
    "droid": ClientLayout(
        cameras={
            "exterior_image_1_left": "observation/exterior_image_1_left",
            "exterior_image_2_left": "observation/exterior_image_2_left",
            "wrist_image_left": "observation/wrist_image_left",
        },
        state=["observation/joint_position", "observation/gripper_position"],
        instruction=["prompt"],
    ),
    "vla-eval": ClientLayout(
        cameras={_WORLD: "images.agentview", _WRIST: "images.wrist"}, state=["states"], instruction=["task_description"]
    ),
    "groot": ClientLayout(
        camera_prefix="video.",
        state=["state.*"],
        instruction=["language.task", "annotation.human.task_description", "task"],
    ),
}


def read_layout(name: str) -> ClientLayout | None:
    """A layout by its name or from a YAML file; None for `auto`, which looks at each message. Raises InputError."""
    if name == AUTO or name in LAYOUTS:
        return LAYOUTS.get(name)
    if not name.endswith((".yaml", ".yml")):
        known = [AUTO, *LAYOUTS]
        raise InputError(
            f"--layout {name}: there is no such layout.{did_you_mean(name, known)} Known: {', '.join(known)}, or a "
            "YAML file with cameras, state and instruction."
        )
    try:
        values = read_yaml(Path(name))
        if isinstance(values, dict) and isinstance(values.get("instruction"), str):
            values["instruction"] = [values["instruction"]]
        return ClientLayout.model_validate(values)
    except OSError as error:
        raise InputError(f"--layout {name} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place, has = ".".join(map(str, problem["loc"])), ", ".join(ClientLayout.model_fields)
        raise InputError(f"--layout {name}: '{place}': {problem['msg']}. A layout has {has}.") from None
    except ValueError as error:
        raise InputError(f"--layout {name} is not valid YAML: {error}") from None


class ObservationReader:
    """Turns clients' messages into observations for one policy."""

    def __init__(
        self,
        cameras: Sequence[str],
        proprio_dim: int,
        layout: ClientLayout | None = None,
        history: History = ONE_FRAME,
    ) -> None:
        """history: the frames that the policy looks at; a message holds all of them. layout: None: the built-in layout
        whose keys a message has. Raises InputError where the layout has no key for one of the cameras."""
        self._cameras, self._proprio_dim, self._layout = tuple(cameras), proprio_dim, layout
        self._history = history
        if layout is not None:
            self._camera_keys(layout)

    def of_one_frame(self) -> ObservationReader:
        """The same for clients that send every control step's frame, and each by itself."""
        return ObservationReader(self._cameras, self._proprio_dim, self._layout)

    def read(self, message: Any) -> Observation:
        """The observation in a message. Raises InputError, which says what a message should hold, for a message that
        lacks something or has it in another form."""
        if not isinstance(message, Mapping):
            raise InputError(f"The message is a {type(message).__name__}; it should be a mapping. {self.expected()}")
        found = _flat(message)
        layout = self._layout or self._recognised(found)
        keys = self._camera_keys(layout)
        missing = [key for key in keys.values() if key not in found]
        if missing:
            raise InputError(f"The message lacks {_listed(missing)}, and has {_listed(found)}. {self.expected(layout)}")
        words = self._instruction(layout, found)
        if self._history.steps == 1:
            images = {camera: _image(key, found[key]) for camera, key in keys.items()}
            return Observation(images, self._proprio(layout, found), words)
        *past, present = [
            Observation(
                {camera: _image(key, frame[key]) for camera, key in keys.items()}, self._proprio(layout, frame), words
            )
            for frame in self._frames(layout, found, list(keys.values()))
        ]
        return replace(present, past=tuple(past))

    def _frames(self, layout: ClientLayout, found: Mapping[str, Any], cameras: Sequence[str]) -> list[dict[str, Any]]:
        """The entries of each frame, the earliest first, of a message that holds several."""
        steps, split = self._history.steps, [*cameras, *_matching(layout.state, found)]
        split_up: dict[str, np.ndarray] = {}
        for key in split:
            value = found[key]
            while isinstance(value, np.ndarray) and value.ndim > 1 and len(value) == 1:  # GR00T's have a batch axis
                value = value[0]
            split_up[key] = value
            if not isinstance(value, np.ndarray) or not value.ndim or len(value) != steps:
                form = list(value.shape) if isinstance(value, np.ndarray) else type(value).__name__
                raise InputError(
                    f"'{key}' should hold {steps} frames along its first axis, the earliest first, and is {form}. "
                    f"{self.expected(layout)}"
                )
        return [{key: value[frame] for key, value in split_up.items()} for frame in range(steps)]

    def expected(self, layout: ClientLayout | None = None) -> str:
        """Say in words what a message should hold."""
        layout = layout or self._layout
        if layout is None:
            options = [name for name, each in LAYOUTS.items() if None not in map(each.camera_key, self._cameras)]
            return " Or ".join(f"as {name}: {self.expected(LAYOUTS[name])}" for name in options)
        images = ", ".join(f"'{key}'" for key in self._camera_keys(layout).values())
        state = ", ".join(f"'{key}'" for key in layout.state)
        steps, each = self._history.steps, "uint8 [H, W, 3], upright"
        frames = ""
        if steps > 1:
            frames = (
                f" It takes {steps} frames of images and state, stacked along a first axis, the earliest first and "
                f"{self._history.stride} control steps apart; where there is no earlier frame, repeat the first."
            )
        return (
            f"This policy takes {images} ({each}), {state} ({self._state_dim(layout)} numbers in all) and "
            f"'{layout.instruction[0]}' (a text).{frames}"
        )

    # ---- the parts of a message --------------------------------------------------------------------------

    def _recognised(self, found: Mapping[str, Any]) -> ClientLayout:
        """The built-in layout with the most keys of the message."""
        scores = {}
        for name, layout in LAYOUTS.items():
            keys = [layout.camera_key(camera) for camera in self._cameras]
            if None not in keys:
                scores[name] = sum(key in found for key in (*keys, *layout.state)) + bool(
                    _matching(layout.state, found)
                )
        best = max(scores, key=lambda name: scores[name], default=None)
        if best is None or not scores[best]:
            raise InputError(
                f"The message has {_listed(found)}, which fits none of the layouts {', '.join(LAYOUTS)} for the "
                f"cameras {', '.join(self._cameras)}. {self.expected()} For other keys, start the server with --layout "
                "FILE.yaml."
            )
        return LAYOUTS[best]

    def _camera_keys(self, layout: ClientLayout) -> dict[str, str]:
        keys = {camera: layout.camera_key(camera) for camera in self._cameras}
        unknown = [camera for camera, key in keys.items() if key is None]
        if unknown:
            raise InputError(
                f"The layout has the cameras {', '.join(layout.cameras)}, and the policy takes "
                f"{', '.join(self._cameras)}: the layout has no key for {', '.join(unknown)}. Write a layout of your "
                f"own, such as cameras: {{{unknown[0]}: observation/image}}, and give it as --layout FILE.yaml."
            )
        return {camera: key for camera, key in keys.items() if key is not None}

    def _proprio(self, layout: ClientLayout, found: Mapping[str, Any]) -> np.ndarray:
        keys = _matching(layout.state, found)
        missing = [key for key in layout.state if not _matching([key], found)]
        if missing:
            raise InputError(f"The message lacks {_listed(missing)}. {self.expected(layout)}")
        parts = [_numbers(key, found[key]) for key in keys]
        state = np.concatenate(parts)
        if len(state) != self._state_dim(layout):
            sizes = ", ".join(f"'{key}' has {len(part)}" for key, part in zip(keys, parts, strict=True))
            raise InputError(
                f"The policy takes a state of {self._state_dim(layout)} numbers, and {sizes}. {self.expected(layout)}"
            )
        if not np.isfinite(state).all():
            raise InputError(f"The state {_listed(keys)} holds numbers that are not finite: {state.tolist()}.")
        turned: np.ndarray = convert_state(state[None], layout.rotations)[0] if layout.rotations else state
        return turned

    def _state_dim(self, layout: ClientLayout) -> int:
        """The number of a client's state's numbers, before its rotations are converted to the policy's form."""
        return self._proprio_dim - grown_by(layout.rotations)

    def _instruction(self, layout: ClientLayout, found: Mapping[str, Any]) -> str:
        key = next((key for key in layout.instruction if key in found), None)
        if key is None:
            raise InputError(f"The message lacks '{layout.instruction[0]}'. {self.expected(layout)}")
        text = found[key]
        while isinstance(text, list | tuple) and len(text) == 1:  # GR00T sends [[text]]
            text = text[0]
        if not isinstance(text, str) or len(text) > _LONGEST_INSTRUCTION:
            what = f"of {len(text)} characters" if isinstance(text, str) else type(text).__name__
            raise InputError(f"'{key}' should be a text of at most {_LONGEST_INSTRUCTION} characters, and is {what}.")
        return text


def to_message(observation: Observation, layout: ClientLayout) -> dict[str, Any]:
    """The message of a client with this layout. Raises InputError where the layout has no key for one of the cameras,
    or several keys for the state, since an observation does not hold the sizes of its parts."""
    keys = {camera: layout.camera_key(camera) for camera in observation.images}
    unknown = [camera for camera, key in keys.items() if key is None]
    if unknown or len(layout.state) > 1 or "*" in layout.state[0]:
        what = f"key for {', '.join(unknown)}" if unknown else "single key for the state"
        raise InputError(f"The layout has no {what}; give --layout FILE.yaml with cameras, state and instruction.")
    images = {str(keys[camera]): image for camera, image in observation.images.items()}
    state = observation.proprio
    if observation.past:
        frames = [*observation.past, observation]
        images = {str(keys[camera]): np.stack([frame.images[camera] for frame in frames]) for camera in keys}
        state = np.stack([frame.proprio for frame in frames])
    return {**images, layout.state[0]: state, layout.instruction[0]: observation.instruction}


# ---- values of a message -------------------------------------------------------------------------------------


def _flat(message: Mapping[Any, Any]) -> dict[str, Any]:
    """The message with nested mappings (GR00T's) joined: {"video": {"front": …}} becomes {"video.front": …}."""
    found: dict[str, Any] = {}
    for key, value in message.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": each for inner, each in value.items() if not isinstance(each, Mapping)}
        else:
            found[str(key)] = value
    return found


def _matching(expected: Sequence[str], found: Mapping[str, Any]) -> list[str]:
    """The wanted keys that a message has; `state.*` stands for all that begin with `state.`, in the message's order."""
    keys: list[str] = []
    for key in expected:
        if key.endswith("*"):
            keys += [each for each in found if each.startswith(key[:-1])]
        elif key in found:
            keys.append(key)
    return keys


def _image(key: str, value: Any) -> np.ndarray:
    """uint8 [H, W, 3], writable. The given image may have leading axes of size 1, colours first, or floats in 0..1."""
    if not isinstance(value, np.ndarray):
        raise InputError(f"'{key}' should be an array, uint8 [H, W, 3], and is a {type(value).__name__}.")
    image = value
    while image.ndim > 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    if image.ndim != 3 or image.shape[2] != 3 or not 1 <= min(image.shape[:2]) <= max(image.shape[:2]) <= _MOST_SIDE:
        raise InputError(f"'{key}' should be an image, uint8 [H, W, 3], and has the shape {list(value.shape)}.")
    if image.dtype.kind == "f":
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise InputError(f"'{key}' is {image.dtype}, whose values should be from 0 to 1; or send uint8.")
        return np.round(255 * image).astype(np.uint8)
    if image.dtype != np.uint8:
        raise InputError(f"'{key}' should be uint8, and is {image.dtype}.")
    return np.array(image)


def _numbers(key: str, value: Any) -> np.ndarray:
    """float32 [n] of an array, a list of numbers, or a number."""
    try:
        numbers = np.asarray(value)
    except ValueError:
        numbers = np.array([""])
    if numbers.dtype.kind not in "biuf" or numbers.size != max(numbers.shape, default=1):
        form = f"{numbers.dtype} {list(numbers.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"'{key}' should be numbers [n], and is {form}.")
    with np.errstate(over="ignore"):  # the caller refuses numbers that are not finite
        return numbers.reshape(-1).astype(np.float32)


def _listed(keys: Any) -> str:
    """Keys from a client, made safe and short for an error message."""
    names = [f"'{printable(str(key))[:60]}'" for key in keys]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "nothing"
