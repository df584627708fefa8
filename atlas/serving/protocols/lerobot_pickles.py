"""The pickles of LeRobot's asynchronous inference, read without running anything that a client sends.

A pickle is a program: it may call whatever can be imported (CVE-2026-25874 concerns this protocol). Here each name in a
pickle stands for a class of this module, and any other name is refused: LeRobot's messages, its descriptions of
features, and the parts in which numpy pickles arrays. These classes hold what they are given, and call nothing.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.errors import InputError, first_line
from atlas.system.array_codec import array_from

_HELPERS = ("lerobot.async_inference.helpers", "lerobot.scripts.server.helpers")  # since LeRobot 0.4, and before
_MOST_OPERATIONS = 20_000


class _Sealed(type):
    """The metaclass of classes whose attributes a pickle cannot set."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise TypeError("a pickle may not change a class")


class _Held(metaclass=_Sealed):
    """An object in a pickle: its arguments and its state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, None

    def __new__(cls, *_: Any) -> _Held:
        held = super().__new__(cls)
        held.arguments, held.state = (), None
        return held

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of a pickled dataclass."""
        return self.state if isinstance(self.state, dict) else {}


class _Message(_Held):
    """A TimedObservation or RemotePolicyConfig."""


class _Feature(_Held):
    """A PolicyFeature, FeatureType or NormalizationMode, which nothing here looks into."""


class _Array(_Held):
    """A numpy array: `_reconstruct`, then a state."""


class _Buffer(_Held):
    """A numpy array in a pickle of protocol 5: `_frombuffer`, with everything in its arguments."""


class _DType(_Held):
    """numpy.dtype: its name as an argument, its byte order in the state."""


class _Scalar(_Held):
    """A numpy scalar: its dtype and its bytes."""


class _Name(_Held):
    """numpy.ndarray, which a pickle only names."""


_NUMPY: dict[str, dict[str, type[_Held]]] = {
    "multiarray": {"_reconstruct": _Array, "scalar": _Scalar},
    "numeric": {"_frombuffer": _Buffer},
}
_KNOWN: dict[tuple[str, str], type[_Held]] = {
    **{(module, name): _Message for module in _HELPERS for name in ("TimedObservation", "RemotePolicyConfig")},
    **{("lerobot.configs.types", name): _Feature for name in ("PolicyFeature", "FeatureType", "NormalizationMode")},
    **{
        (f"numpy.{core}.{module}", name): kind
        for core in ("core", "_core")
        for module, names in _NUMPY.items()
        for name, kind in names.items()
    },
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Name,
}


_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined]  # CPython's


class _Unpickler(_InPython):  # type: ignore[misc]
    """The unpickler written in Python: the one in C allocates the size that a pickle claims before reading the data."""

    done = 0  # operations

    def find_class(self, module: str, name: str) -> type[_Held]:
        if (module, name) not in _KNOWN:
            raise InputError(f"The pickle names {module}.{name}, which this server does not take.")
        return _KNOWN[module, name]

    def persistent_load(self, _: Any) -> Any:
        raise InputError("The pickle refers to an object outside of it.")

    def get_extension(self, _: int) -> None:
        raise InputError("The pickle refers to an object outside of it.")

    def load_bytearray8(self) -> None:
        self.append(bytes(self.read(int.from_bytes(self.read(8), "little"))))


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """An operation of the unpickler that counts itself, and raises InputError past the limit."""

    def counted(unpickler: Any) -> None:
        unpickler.done += 1
        if unpickler.done > _MOST_OPERATIONS:
            raise InputError(f"The pickle has more than {_MOST_OPERATIONS} operations; images should be arrays.")
        load(unpickler)

    return counted


_Unpickler.dispatch = {
    code: _counted(_Unpickler.load_bytearray8 if code == pickle.BYTEARRAY8[0] else load)
    for code, load in _InPython.dispatch.items()
}


@dataclass(frozen=True)
class PolicySetup:
    """A client's first message: the policy it asks for, and its robot's names of states and images."""

    module: str  # in which the client has its classes; answers name the same one
    checkpoint: str
    state_names: tuple[str, ...]  # of the numbers in its state, in order
    cameras: Mapping[str, str]  # the robot's name of an image: the feature's, after `rename_map`
    actions: int  # per chunk


@dataclass(frozen=True)
class TimedObservation:
    """A robot's observation with its time."""

    timestamp: float
    timestep: int
    must_go: bool
    observation: Mapping[str, Any]  # numbers by name, images uint8 [H, W, 3] and the task


def read_setup(data: bytes) -> PolicySetup:
    """Read a pickled RemotePolicyConfig. Raises InputError."""
    message, module = _load(data, "RemotePolicyConfig")
    fields = message.fields
    features, renamed = fields.get("lerobot_features"), fields.get("rename_map") or {}
    checkpoint, actions = fields.get("pretrained_name_or_path"), fields.get("actions_per_chunk")
    if not isinstance(checkpoint, str) or not isinstance(actions, int) or actions < 1:
        raise InputError("The policy's setup lacks pretrained_name_or_path or actions_per_chunk.")
    if not isinstance(features, dict) or not isinstance(renamed, dict):
        raise InputError("The policy's setup lacks lerobot_features, the names of the robot's state and cameras.")
    state = features.get("observation.state")
    names = state.get("names") if isinstance(state, dict) else None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError("The policy's setup has no names for observation.state.")
    prefix = "observation.images."
    images = [key for key in features if isinstance(key, str) and key.startswith(prefix)]
    cameras = {key.removeprefix(prefix): str(renamed.get(key, key)) for key in images}
    return PolicySetup(module, checkpoint, tuple(names), cameras, actions)


def read_observation(data: bytes) -> TimedObservation:
    """Read a pickled TimedObservation. Raises InputError."""
    message, _ = _load(data, "TimedObservation")
    fields = message.fields
    observation, timestamp, timestep = fields.get("observation"), fields.get("timestamp"), fields.get("timestep")
    if not isinstance(observation, dict) or not isinstance(timestep, int) or not isinstance(timestamp, int | float):
        raise InputError("The observation lacks timestamp, timestep or observation.")
    values = {str(key): _value(value) for key, value in observation.items()}
    return TimedObservation(float(timestamp), timestep, fields.get("must_go") is True, values)


# ---- answers -------------------------------------------------------------------------------------------------


@dataclass
class TimedAction:
    """Like LeRobot's class; `write_actions` gives it LeRobot's name."""

    timestamp: float
    timestep: int
    action: Any  # a tensor [A]


def write_actions(actions: np.ndarray, start: TimedObservation, period: float, module: str) -> bytes:
    """A chunk [n, A] as a pickled list of TimedAction, the first at the observation's time. period: seconds between two
    actions. module: in which the client has the class."""
    import torch

    timed = [
        TimedAction(start.timestamp + i * period, start.timestep + i, torch.from_numpy(action.copy()))
        for i, action in enumerate(actions)
    ]
    # Protocol 2 names a class once, in lines of text, so that another name can replace it.
    own = f"c{TimedAction.__module__}\n{TimedAction.__name__}\n".encode()
    before, named, after = pickle.dumps(timed, protocol=2).partition(own)
    assert named and own not in after
    return before + f"c{module}\n{TimedAction.__name__}\n".encode() + after


# ---- values of a pickle --------------------------------------------------------------------------------------


def _load(data: bytes, name: str) -> tuple[_Message, str]:
    """The message of this name, and the module in which the client has its class."""
    module = next((m for m in _HELPERS if m.encode() in data[:4096] and name.encode() in data[:4096]), None)
    if module is None:
        raise InputError(f"The message is not a pickled LeRobot {name}.")
    try:
        message = _Unpickler(io.BytesIO(data)).load()
    except InputError:
        raise
    except Exception as error:  # a pickle may be wrong in any way
        raise InputError(f"The message of {len(data)} bytes is not a readable pickle ({first_line(error)}).") from None
    if not isinstance(message, _Message):
        raise InputError(f"The message is not a pickled LeRobot {name}.")
    return message, module


def _value(value: Any) -> Any:
    """A number, a text or an array of a robot's observation. Raises InputError for anything else."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, _Array):
        return _array(value)
    if isinstance(value, _Buffer):
        if len(value.arguments) != 4 or value.arguments[3] not in ("C", "F"):
            raise InputError("An array of the observation is not pickled as numpy pickles it.")
        data, dtype, shape, order = value.arguments
        return _shaped(data, _dtype(dtype), shape, order == "F")
    if isinstance(value, _Scalar) and len(value.arguments) == 2:
        return array_from(value.arguments[1], _dtype(value.arguments[0]), ()).item()
    raise InputError(f"The observation holds a {type(value).__name__}; it may hold numbers, texts and numpy arrays.")


def _array(value: _Array) -> np.ndarray:
    state = value.state
    if not isinstance(state, tuple) or len(state) != 5:
        raise InputError("An array of the observation is not pickled as numpy pickles it.")
    _, shape, dtype, column_major, data = state
    return _shaped(data, _dtype(dtype), shape, bool(column_major))


def _shaped(data: Any, dtype: str, shape: Any, column_major: bool) -> np.ndarray:
    sizes = list(shape) if isinstance(shape, tuple) else shape
    array = array_from(data, dtype, sizes[::-1] if column_major and isinstance(sizes, list) else sizes)
    return array.T if column_major else array


def _dtype(value: Any) -> str:
    """A dtype with its byte order, such as '<f4'."""
    if not isinstance(value, _DType) or not value.arguments or not isinstance(value.arguments[0], str):
        raise InputError("An array of the observation has no named dtype.")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    return f"{order if isinstance(order, str) else '|'}{value.arguments[0]}"
