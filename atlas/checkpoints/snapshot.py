"""What a checkpoint holds, as it was at one moment: copied quickly, written at leisure, read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from atlas.checkpoints.host_memory import HostMemory
from atlas.checkpoints.state import STATE, RankState, TrainingState
from atlas.data.kept_split import KeptSplit
from atlas.errors import InputError
from atlas.policies.base import Policy
from atlas.system.files import finite, write_json
from atlas.system.tensors import load_nested, save_nested

_WEIGHTS, _OPTIMIZER, _RANKS = "weights", "optimizer", "ranks"  # files of trainer/
_OLDER = {_WEIGHTS: "weights.pt", _OPTIMIZER: "optimizer.pt", _RANKS: "random.pt"}  # what they were called once


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint.

    policy: gives its config, processor and card; none of its weights. weights: what is saved as `policy/`, without
    frozen pretrained parts. trained: the weights that training goes on with, where they are other ones (an average is
    on). optimizer: its state dict. rank_states: one a rank.
    """

    policy: Policy
    weights: Mapping[str, torch.Tensor]
    trained: Mapping[str, torch.Tensor] | None
    optimizer: Mapping[str, Any]
    rank_states: Sequence[RankState]
    state: TrainingState

    @classmethod
    def of(
        cls,
        policy: Policy,
        trained: Policy,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        rank_states: Sequence[RankState],
    ) -> Snapshot:
        """A view of what there is now, which costs nothing and is true until the next step; see `copied`.

        policy: what is saved as `policy/`; trained: what training goes on with, often the same.
        """
        others = None if trained is policy else trained.own_state_dict()
        return cls(policy, policy.own_state_dict(), others, optimizer.state_dict(), rank_states, replace(state))

    def copied(self, memory: HostMemory) -> Snapshot:
        """The same in memory of its own, where the next steps do not change it."""
        weights, trained, optimizer, rank_states = memory.copy(self._parts)
        return Snapshot(self.policy, weights, trained, optimizer, rank_states, self.state)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors: about what the checkpoint takes on the disk."""
        return sum(leaf.nbytes for leaf in tree_leaves(self._parts) if isinstance(leaf, torch.Tensor))

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.weights, self.trained, self.optimizer, self.rank_states

    def write(self, folder: Path) -> None:
        """Write `policy/` and `trainer/` into a folder. Raises OSError."""
        self.policy.save_pretrained(folder / "policy", weights=self.weights)
        trainer = folder / "trainer"
        trainer.mkdir()
        save_nested(trainer / f"{_OPTIMIZER}.safetensors", self.optimizer)
        save_nested(trainer / f"{_RANKS}.safetensors", self.rank_states)
        if self.trained is not None:
            save_nested(trainer / f"{_WEIGHTS}.safetensors", self.trained)
        write_json(folder / STATE, finite(asdict(self.state)))


def load_trained_weights(checkpoint: Path) -> dict[str, torch.Tensor] | None:
    """The weights that training goes on with, where they are others than those in `policy/`. Raises InputError."""
    if not any((checkpoint / "trainer" / name).exists() for name in (f"{_WEIGHTS}.safetensors", _OLDER[_WEIGHTS])):
        return None
    weights: dict[str, torch.Tensor] = _load(checkpoint, _WEIGHTS)
    return weights


def load_optimizer_state(checkpoint: Path) -> dict[str, Any]:
    """The state dict of the optimizer. Raises InputError."""
    state: dict[str, Any] = _load(checkpoint, _OPTIMIZER)
    return state


def load_rank_states(checkpoint: Path) -> list[RankState]:
    """The states of the ranks. Raises InputError."""
    states: list[RankState] = _load(checkpoint, _RANKS)
    return states


def split_of(split: KeptSplit) -> dict[str, torch.Tensor]:
    """A split as it is kept in a checkpoint, with the first rank's state."""
    return {"training": torch.from_numpy(split.training), "validation": torch.from_numpy(split.validation)}


def load_split(checkpoint: Path) -> KeptSplit | None:
    """The split of a run; None in checkpoints of before it was kept. Raises InputError."""
    found = next((state["split"] for state in load_rank_states(checkpoint) if "split" in state), None)
    return None if found is None else KeptSplit(found["training"].numpy(), found["validation"].numpy())


def _load(checkpoint: Path, name: str) -> Any:
    older = checkpoint / "trainer" / _OLDER[name]
    if not older.exists():
        return load_nested(checkpoint / "trainer" / f"{name}.safetensors")
    try:
        return torch.load(older, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{older} is damaged ({type(error).__name__}: {error}).") from None
