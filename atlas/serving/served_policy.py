"""A server's description of its policy, sent when a client connects, and the entry that an Atlas client sends back.

Other clients get the same description and may ignore it. An Atlas client adds an entry "atlas" to observations: to the
first one of an episode its seed, so that the policy draws the same random numbers as it would without a server; and
where the next chunk is to continue the current one, the rest of that and how many of its steps will be executed before
the answer arrives: {"version": 1, "seed": 7, "rest": [R, A], "delay": 2}.
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
_LARGEST = 65536  # pixels, actions or numbers that a server may announce


@dataclass(frozen=True)
class ServedPolicy:
    """The facts that a client needs to know about a served policy."""

    processor: PolicyProcessor  # without statistics: the server does the scaling
    sends: int  # actions per answer
    follows: bool = False  # whether a chunk can continue the rest of the previous one
    validated_execute: int | None = None  # actions of each chunk that were executed where it was validated

    def to_message(self, wanted: str) -> dict[str, Any]:
        """The first message to a client. wanted: what an observation should hold, in words."""
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
                "validated_execute": self.validated_execute,
                "wanted": wanted,
                "history": processor.history.to_dict(),
            }
        }

    @classmethod
    def from_message(cls, message: Any) -> ServedPolicy | None:
        """None for the message of a server other than Atlas's. Raises InputError for another version of the protocol,
        and for a description that cannot be read."""
        if not isinstance(message, Mapping) or not isinstance(message.get(ENTRY), Mapping):
            return None
        values = message[ENTRY]
        check_version(values, "The server")
        try:
            numbers = {key: values[key] for key in ("camera_size", "image_size", "action_horizon", "proprio_dim")}
            sends, cameras = values["sends"], values["cameras"]
            validated = values.get("validated_execute")  # servers of earlier versions do not say it
            known = [] if validated is None else [validated]
            if not all(isinstance(n, int) and 1 <= n <= _LARGEST for n in (*numbers.values(), sends, *known)):
                raise ValueError(f"{numbers | {'sends': sends, 'validated_execute': validated}}")
            if not isinstance(cameras, list) or not cameras or not all(isinstance(name, str) for name in cameras):
                raise ValueError(f"cameras {cameras!r}")
            spec = ActionSpec.from_dict(values["action_spec"])
            history = History.from_dict(values.get("history", {}))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The server's description of its policy cannot be read ({error!r:.200}).") from None
        processor = PolicyProcessor(
            tuple(cameras), **numbers, action_spec=spec, statistics=(), scaling=ProcessorConfig(), history=history
        )
        return cls(processor, sends, values.get("follows") is True, validated)


@dataclass(frozen=True)
class ClientEntry:
    """The entry that an Atlas client adds to an observation."""

    seed: int | None = None  # of the episode that begins with this observation
    running: RunningChunk | None = None  # the chunk that the answer is to continue

    def to_message(self) -> dict[str, Any]:
        """Empty where there is neither a seed nor a running chunk."""
        entry: dict[str, Any] = {} if self.seed is None else {"seed": self.seed}
        if self.running is not None:
            entry |= {"rest": self.running.rest, "delay": self.running.delay}
        return {ENTRY: {"version": VERSION, **entry}} if entry else {}

    @classmethod
    def from_message(cls, message: Any, processor: PolicyProcessor, follows: bool) -> ClientEntry:
        """The entry of any client's message. follows: whether the policy can continue a chunk. Raises InputError for
        another version of the protocol, and for an invalid entry."""
        entry = message.get(ENTRY) if isinstance(message, Mapping) else None
        if not isinstance(entry, Mapping):
            return cls()
        check_version(entry, "The client")
        seed = entry.get("seed")
        if "seed" in entry and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**62):
            raise InputError(f"An episode's seed is {seed!r:.60}; it should be a whole number from 0 to 2**62 - 1.")
        if "rest" not in entry:
            return cls(seed)
        if not follows:
            raise InputError("This policy cannot continue a running chunk; leave out 'rest'.")
        return cls(seed, _running(entry["rest"], entry.get("delay"), processor))


def _running(rest: Any, delay: Any, processor: PolicyProcessor) -> RunningChunk:
    longest, width = processor.action_horizon, processor.action_spec.dim
    right = isinstance(rest, np.ndarray) and rest.dtype.kind == "f" and rest.ndim == 2 and rest.shape[1] == width
    if not right or not 1 <= len(rest) <= longest or not np.isfinite(rest).all():
        raise InputError(f"'rest', the rest of a running chunk, should be finite numbers [1 to {longest}, {width}].")
    if not isinstance(delay, int) or isinstance(delay, bool) or not 0 <= delay <= longest:
        raise InputError(f"'delay' is {delay!r:.60}; it should be a number of steps from 0 to {longest}.")
    return RunningChunk(rest.astype(np.float32), delay)


def check_version(entry: Mapping[Any, Any], who: str) -> None:
    """Raise InputError where the other end speaks another version of the protocol."""
    if entry.get("version") != VERSION:
        raise InputError(
            f"{who} speaks version {entry.get('version')!r:.20} of Atlas's protocol, and this end speaks {VERSION}: "
            "install the same version of Atlas at both ends."
        )
