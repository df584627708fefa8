"""The facts that a result carries so that others can believe it: which policy, which data, which software, which
protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from atlas.errors import InputError
from atlas.rollout.chunk_timeline import Blend
from atlas.rollout.episode_plan import Purpose
from atlas.system.documents import read_json
from atlas.system.files import sha256_of
from atlas.tracking.provenance import provenance

_STATE = "trainer/state.json"  # of the checkpoint that the policy lies in
_CARD = "README.md"  # says nothing that a policy does


@dataclass(frozen=True)
class Protocol:
    """Everything but the policy that an evaluation's outcomes follow from."""

    env: str
    episodes: int
    seed: int
    purpose: Purpose
    execute: int
    ensemble: float | None = None
    instruction_shuffle: bool = False
    blind: bool = False
    perturb: tuple[str, ...] = ()  # each 'NAME:LEVEL'
    perturb_episodes: int = 0
    delay_ms: float = 0.0
    blend: Blend = None
    cameras: Mapping[str, str] | None = None  # {a LeRobot policy's: the environment's}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """Read JSON. Raises KeyError, TypeError or ValueError."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"the protocol's {unknown[0]} is not known")
        return cls(**{**values, "perturb": tuple(values.get("perturb", ()))})


def gather_evidence(policy: Path, protocol: Protocol, dataset: str | None = None) -> dict[str, Any]:
    """Gather the evidence for JSON. policy: the folder of the saved policy. dataset: the fingerprint of the data that
    it was trained on; None: as its checkpoint says, where it lies in one."""
    return {
        "protocol": asdict(protocol) | {"perturb": list(protocol.perturb)},
        "policy_sha256": policy_hash(policy),
        "dataset_fingerprint": dataset or trained_on(policy),
        "software": provenance(),
    }


def policy_hash(folder: Path) -> str:
    """One SHA-256 of all files of a saved policy, by their names, without its card."""
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _CARD):
        whole.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    return whole.hexdigest()


def trained_on(policy: Path) -> str | None:
    """The fingerprint of the dataset that a policy was trained on; None where no checkpoint says it."""
    file = policy.resolve().parent / _STATE
    if not file.is_file():
        return None
    try:
        found = read_json(file).get("dataset_fingerprint")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}).") from None
    return None if found is None else str(found)
