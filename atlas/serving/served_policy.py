"""What a server says of its policy when a client connects, and what a client of Atlas's makes of it.

Clients of others' get the same message, and are free to ignore it. Those of Atlas's add an entry of their own to the
first observation of an episode, {"atlas": {"version": 1, "seed": 7}}: so the policy draws the same random numbers as it
would without a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atlas.config import ProcessorConfig
from atlas.data.sampling.history import History
from atlas.errors import InputError
from atlas.policies.processor import PolicyProcessor
from atlas.types import ActionSpec

ENTRY = "atlas"
VERSION = 1
_LARGEST = 65536


@dataclass(frozen=True)
class ServedPolicy:
    """The part of a policy that whoever talks to its server needs to know."""

    processor: PolicyProcessor  # without statistics: scaling is the server's business
    sends: int  # actions that an answer holds

    @classmethod
    def of(cls, processor: PolicyProcessor, sends: int) -> ServedPolicy:
        return cls(processor, sends)

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
        return cls(processor, sends)


def episode_begins(seed: int) -> dict[str, Any]:
    """What a client of Atlas's adds to the first observation of an episode."""
    return {ENTRY: {"version": VERSION, "seed": seed}}


def seed_of_new_episode(message: Any) -> int | None:
    """The seed, where a client of Atlas's says that an episode begins. Raises InputError for one of another version."""
    entry = message.get(ENTRY) if isinstance(message, Mapping) else None
    if not isinstance(entry, Mapping):
        return None
    check_version(entry, "The client")
    seed = entry.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**62:
        raise InputError(f"An episode's seed is {seed!r:.60}; it should be a whole number from 0 on.")
    return seed


def check_version(entry: Mapping[Any, Any], who: str) -> None:
    """Raises InputError where the other end is of another version."""
    if entry.get("version") != VERSION:
        raise InputError(
            f"{who} speaks version {entry.get('version')!r:.20} of Atlas's protocol, and this end version {VERSION}: "
            "install the same version of Atlas at both ends."
        )
