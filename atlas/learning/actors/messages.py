"""The messages between actors and their learner: typed, in msgpack, signed with a shared key; no pickle.

actor                                learner
Hello          ->                    is it the same policy, world and version?
               <-  Welcome           its number, what of it has arrived, the weights      (or Refused, and why)
Experience     ->                    a piece of an episode
               <-  Taken             what has arrived, what is safe on disk, how far the run is
               <-  Weights           every `push_interval` updates
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from atlas.errors import InputError
from atlas.learning.sac_learner import Piece
from atlas.system.array_codec import pack, unpack

PROTOCOL = 1
DEFAULT_PORT = 5488


@dataclass(frozen=True)
class Hello:
    version: str  # Atlas's
    protocol: int
    about: str  # the policy and the world, see `run_parts.told_to_actors`
    actor: int  # the number that the learner gave it; -1: none yet
    token: str  # the same in every hello of a process


@dataclass(frozen=True)
class Welcome:
    actor: int
    arrived: int  # the number of its last piece that arrived; -1: none
    steps: int  # of all actors
    weights: dict[str, np.ndarray]


@dataclass(frozen=True)
class Refused:
    why: str


@dataclass(frozen=True)
class Experience:
    actor: int
    number: int  # of the piece, from 0
    episodes: int  # that ended with it
    piece: Piece


@dataclass(frozen=True)
class Taken:
    arrived: int
    safe: int  # the last of its pieces that is in a checkpoint
    steps: int
    replay_size: int
    done: bool  # the run is over


@dataclass(frozen=True)
class WhoAreYou:
    """The answer of a restarted learner: the actor should say hello."""


@dataclass(frozen=True)
class Weights:
    updates: int
    weights: dict[str, np.ndarray]


Message = Hello | Welcome | Refused | Experience | Taken | WhoAreYou | Weights
_ALL = (Hello, Welcome, Refused, Experience, Taken, WhoAreYou, Weights)
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in _ALL}
_SIMPLE = {"int": int, "str": str, "bool": bool}


def to_frames(message: Message, key: str | None) -> list[bytes]:
    """The message and its signature, which is empty without a key."""
    values = {field.name: getattr(message, field.name) for field in fields(message)}
    if isinstance(message, Experience):
        values["piece"] = {field.name: getattr(message.piece, field.name) for field in fields(Piece)}
    frame = pack({"kind": type(message).__name__, **values}, "vla-eval")
    return [frame, _signature(frame, key)]


def from_frames(frames: list[bytes], key: str | None) -> Message:
    """Read a message. Raises WrongKey for another key's signature, InputError for an invalid message. A refusal is
    accepted without a valid signature, because an actor with another key could not verify one."""
    if len(frames) != 2:
        raise InputError(f"A message has {len(frames)} frames; it has a content and a signature.")
    frame, signature = frames
    signed = hmac.compare_digest(signature, _signature(frame, key))
    values = unpack(frame)
    if not isinstance(values, Mapping):
        raise InputError("A message is a mapping.")
    kind = _KINDS.get(str(values.get("kind")))
    if not signed and kind is not Refused:
        raise WrongKey
    if kind is None:
        raise InputError(f"There is no message {values.get('kind')!r:.40}.")
    content = {name: value for name, value in values.items() if name != "kind"}
    if kind is Experience:
        content["piece"] = _checked(Piece, content.get("piece"))
    message: Message = _checked(kind, content)
    return message


class WrongKey(Exception):
    """The message was signed with another key, or with none."""


def _checked(kind: type[Any], values: Any) -> Any:
    """A message with these values. Raises InputError if a field is missing or has another type."""
    expected = {field.name: str(field.type) for field in fields(kind)}
    if not isinstance(values, Mapping) or values.keys() != expected.keys():
        raise InputError(f"A message {kind.__name__} should have {', '.join(expected)}.")
    for name, type_name in expected.items():
        value = values[name]
        if type_name in _SIMPLE:
            fits = type(value) is _SIMPLE[type_name]
        elif type_name == "np.ndarray":
            fits = isinstance(value, np.ndarray)
        elif type_name == "dict[str, np.ndarray]":
            fits = isinstance(value, Mapping) and all(isinstance(each, np.ndarray) for each in value.values())
        else:
            fits = isinstance(value, Piece)
        if not fits:
            raise InputError(f"{name} of a message {kind.__name__} is a {type(value).__name__}, expected {type_name}.")
    return kind(**values)


def _signature(frame: bytes, key: str | None) -> bytes:
    return b"" if key is None else hmac.new(key.encode(), frame, hashlib.sha256).digest()


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @classmethod
    def read(cls, text: str, flag: str) -> Address:
        """Read HOST:PORT, HOST or :PORT; the port is 5488 where it is left out. Raises InputError."""
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            host, port = text, ""
        host = host.strip("[]") or "127.0.0.1"
        if not (port or str(DEFAULT_PORT)).isdecimal() or not 0 <= int(port or DEFAULT_PORT) < 2**16 or " " in host:
            raise InputError(f"{flag} {text!r} is no address; expected HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}.")
        return cls(host, int(port or DEFAULT_PORT))

    def __str__(self) -> str:
        return f"{self._host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """The address as ZMQ takes it."""
        return f"tcp://{'*' if self.host == '0.0.0.0' else self._host}:{self.port or '*'}"

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host
