"""What LeRobot's robot client sends, pickled as it pickles it: under the names of its own module; and a client."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import grpc
import numpy as np

from atlas.serving.protocols.lerobot_protocol import _field, _fields

HELPERS = "lerobot.async_inference.helpers"
NAMES = [f"joint_{number}.pos" for number in range(8)]
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (8,), "names": NAMES},
    "observation.images.agentview": {"dtype": "image", "shape": (32, 32, 3), "names": ["height", "width", "channels"]},
    "observation.images.wrist": {"dtype": "image", "shape": (32, 32, 3), "names": ["height", "width", "channels"]},
}
RENAMED = {"observation.images.wrist": "observation.images.eye_in_hand"}


@dataclass
class TimedAction:
    timestamp: float
    timestep: int
    action: Any


@dataclass
class TimedObservation:
    timestamp: float
    timestep: int
    observation: dict[str, Any]
    must_go: bool = False


@dataclass
class RemotePolicyConfig:
    policy_type: str
    pretrained_name_or_path: str
    lerobot_features: dict[str, Any]
    actions_per_chunk: int
    device: str = "cpu"
    rename_map: dict[str, str] = field(default_factory=dict)


CLASSES = (TimedAction, TimedObservation, RemotePolicyConfig)


@contextmanager
def as_in(module_name: str) -> Iterator[None]:
    """The classes are those of a module of LeRobot's, which need not be installed."""
    parts = module_name.split(".")
    modules = {".".join(parts[: end + 1]): types.ModuleType(parts[end]) for end in range(len(parts))}
    module = modules[module_name]
    with mock.patch.dict(sys.modules, modules):
        for each in CLASSES:
            setattr(module, each.__name__, each)
            each.__module__ = module_name
        try:
            yield
        finally:
            for each in CLASSES:
                each.__module__ = __name__


def dumps(value: Any, module: str = HELPERS, protocol: int | None = None) -> bytes:
    with as_in(module):
        return pickle.dumps(value, protocol=protocol)


def loads(data: bytes, module: str = HELPERS) -> Any:
    with as_in(module):
        return pickle.loads(data)


def setup(checkpoint: str = "outputs/first", **changes: Any) -> RemotePolicyConfig:
    values = {"lerobot_features": FEATURES, "actions_per_chunk": 3, "rename_map": RENAMED, **changes}
    return RemotePolicyConfig("act", checkpoint, **values)


def observation(timestep: int = 0, pixel: int = 7, state: float = 0.5, must_go: bool = False, **changes: Any) -> Any:
    image = np.full((32, 32, 3), pixel, np.uint8)
    seen = {name: state for name in NAMES} | {"agentview": image, "wrist": image, "task": "go"}
    return TimedObservation(100.0 + timestep / 20, timestep, seen | changes, must_go)


class Client:
    """The four requests, in bytes of protobuf."""

    def __init__(self, channel: grpc.Channel, key: str | None = None) -> None:
        self._channel, self._metadata = channel, [("authorization", f"Api-Key {key}")] if key else None

    def ask(self, name: str, message: bytes = b"") -> bytes:
        call = self._channel.unary_unary(f"/transport.AsyncInference/{name}")
        answer: bytes = call(message, timeout=20, metadata=self._metadata)
        return answer

    def send(self, sent: Any, pieces: int = 1) -> None:
        data = sent if isinstance(sent, bytes) else dumps(sent)
        size = -(-len(data) // pieces) or 1
        parts = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
        states = [3 if i == len(parts) - 1 else 1 if i == 0 else 2 for i in range(len(parts))]
        stream = (bytes([8, state]) + _field(2, part) for state, part in zip(states, parts, strict=True))
        self._channel.stream_unary("/transport.AsyncInference/SendObservations")(
            stream, timeout=20, metadata=self._metadata
        )

    def actions(self) -> list[Any]:
        fields = dict(_fields(self.ask("GetActions")))
        return loads(fields[1]) if fields else []  # type: ignore[arg-type]

    def begin(self, **changes: Any) -> None:
        self.ask("Ready")
        self.ask("SendPolicyInstructions", _field(1, dumps(setup(**changes))))
