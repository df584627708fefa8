"""What a server says of its policy when a client connects, and what a client of Atlas's makes of it.

Clients of others' get the same message, and are free to ignore it. Those of Atlas's add an entry of their own, "atlas",
to observations: to the first one of an episode its seed, so that the policy draws the same random numbers as it would
without a server; and where the next chunk is to go on from the last one, what is left of that, and how many steps of it
will be executed before the answer is there: {"version": 1, "seed": 7, "rest": [R, A], "delay": 2}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.config import ProcessorConfig
from atlas.data.sampling.history import History
from atlas.errors import InputError
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.chunk_timeline import RunningChunk
from atlas.types import ActionSpec

ENTRY = "atlas"
VERSION = 1
_LARGEST = 65536


@dataclass(frozen=True)
class ServedPolicy:
    """The part of a policy that whoever talks to its server needs to know."""

    processor: PolicyProcessor  # without statistics: scaling is the server's business
    sends: int  # actions that an answer holds
    follows: bool = False  # whether a chunk can go on from what is left of the one before

    def to_message(self, wanted: str) -> dict[str, Any]:
        """The first message to a client. wanted: in words, what an observation should hold."""
        processor = self.processor
        return {
            ENTRY: {
                "version": VERSION,
                "cameras": list(processor.cameras),
                "camera_size": processor.camera_size,
                "image_size": processor.image_size,
                "action_horizon": processor.action_horizon,
                "proprio_dim": processor.proprio_dim,
                "action_spec": processor.action_spec.to_dict(),
                "sends": self.sends,
                "follows": self.follows,
                "wanted": wanted,
                "history": processor.history.to_dict(),
            }
        }

    @classmethod
    def from_message(cls, message: Any) -> ServedPolicy | None:
        """None where it is not of one of Atlas's servers. Raises InputError for another version of it."""
        if not isinstance(message, Mapping) or not isinstance(message.get(ENTRY), Mapping):
            return None
        values = message[ENTRY]
        check_version(values, "The server")
        try:
            numbers = {key: values[key] for key in ("camera_size", "image_size", "action_horizon", "proprio_dim")}
            sends, cameras = values["sends"], values["cameras"]
            if not all(isinstance(n, int) and 1 <= n <= _LARGEST for n in (*numbers.values(), sends)):
                raise ValueError(f"{numbers | {'sends': sends}}")
            if not isinstance(cameras, list) or not cameras or not all(isinstance(name, str) for name in cameras):
                raise ValueError(f"cameras {cameras!r}")
            spec = ActionSpec.from_dict(values["action_spec"])
            history = History.from_dict(values.get("history", {}))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"What the server says of its policy cannot be read ({error!r:.200}).") from None
        processor = PolicyProcessor(
            tuple(cameras), **numbers, action_spec=spec, statistics=(), scaling=ProcessorConfig(), history=history
        )
        return cls(processor, sends, follows=values.get("follows") is True)


@dataclass(frozen=True)
class ClientEntry:
    """What a client of Atlas's adds to an observation."""

    seed: int | None = None  # of the episode that begins with it
    running: RunningChunk | None = None  # what the answer is to go on from

    def to_message(self) -> dict[str, Any]:
        """Nothing where there is nothing to say."""
        told: dict[str, Any] = {} if self.seed is None else {"seed": self.seed}
        if self.running is not None:
            told |= {"rest": self.running.rest, "delay": self.running.delay}
        return {ENTRY: {"version": VERSION, **told}} if told else {}

    @classmethod
    def from_message(cls, message: Any, processor: PolicyProcessor, follows: bool) -> ClientEntry:
        """Of any client's message. follows: whether the policy can go on from a chunk. Raises InputError for a client
        of another version, and for what a client of this one would not say."""
        entry = message.get(ENTRY) if isinstance(message, Mapping) else None
        if not isinstance(entry, Mapping):
            return cls()
        check_version(entry, "The client")
        seed = entry.get("seed")
        if "seed" in entry and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**62):
            raise InputError(f"An episode's seed is {seed!r:.60}; it should be a whole number from 0 on.")
        if "rest" not in entry:
            return cls(seed)
        if not follows:
            raise InputError("This policy cannot go on from a chunk that is executed; leave out 'rest'.")
        return cls(seed, _running(entry["rest"], entry.get("delay"), processor))


def _running(rest: Any, delay: Any, processor: PolicyProcessor) -> RunningChunk:
    longest, width = processor.action_horizon, processor.action_spec.dim
    right = isinstance(rest, np.ndarray) and rest.dtype.kind == "f" and rest.ndim == 2 and rest.shape[1] == width
    if not right or not 1 <= len(rest) <= longest or not np.isfinite(rest).all():
        raise InputError(f"'rest', what is left of a chunk, should be finite numbers [1 to {longest}, {width}].")
    if not isinstance(delay, int) or isinstance(delay, bool) or not 0 <= delay <= longest:
        raise InputError(f"'delay' is {delay!r:.60}; it should be a number of steps from 0 to {longest}.")
    return RunningChunk(rest.astype(np.float32), delay)


def check_version(entry: Mapping[Any, Any], who: str) -> None:
    """Raises InputError where the other end is of another version."""
    if entry.get("version") != VERSION:
        raise InputError(
            f"{who} speaks version {entry.get('version')!r:.20} of Atlas's protocol, and this end version {VERSION}: "
            "install the same version of Atlas at both ends."
        )
