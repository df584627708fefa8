"""The contents of a checkpoint (weights, optimizer, the state of training): captured at one moment, written, read."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from atlas.checkpoints.host_memory import HostMemory
from atlas.data.sampling.kept_split import KeptSplit
from atlas.errors import InputError
from atlas.policies.base import Policy
from atlas.policies.reference_answers import ReferenceAnswers
from atlas.system.documents import read_json
from atlas.system.files import finite, write_json
from atlas.system.tensors import load_nested, save_nested

STATE = "trainer/state.json"  # in a checkpoint
# Per rank: {"random": see `random_state`, "sums": {name: tensor}}; the first rank's also has "split".
RankState = Mapping[str, Any]
_WEIGHTS, _OPTIMIZER, _RANKS = "weights", "optimizer", "ranks"  # files of trainer/
_OLDER = {_WEIGHTS: "weights.pt", _OPTIMIZER: "optimizer.pt", _RANKS: "random.pt"}  # their former names


@dataclass
class TrainingState:
    """The state of training in plain numbers; everything else about it is in tensors."""

    step: int  # optimizer steps done
    samples_seen: int  # position in the endless stream of samples
    world_size: int
    best_step: int | None = None
    best_value: float | None = None
    wandb_id: str | None = None
    wandb_row: int | None = None  # the last row given to wandb
    checkpoints: int = 0  # written so far, this one included
    restarts: int = 0  # how often training has resumed from a checkpoint
    skipped_steps: int = 0  # left out because their loss or gradient was not finite
    stopping_best: float | None = None  # the best value that early stopping has seen
    stopping_since: int = 0  # the number of values since
    stopped_short: bool = False  # a signal came before this step was validated, evaluated and saved as due
    batch_size: int | None = None  # samples per process, if data.batch_size is auto
    max_steps: int | None = None  # the planned length of the run
    rate_steps: int | None = None  # see Schedule
    metric: str | None = None  # by which the best checkpoint is chosen
    value: float | None = None  # that metric's value for these weights; None if it was not measured at this step
    dataset_fingerprint: str | None = None  # of the data it is trained on


def load_state(checkpoint: Path) -> TrainingState:
    """Read where training stood. Raises InputError for a damaged file."""
    path = checkpoint / STATE
    try:
        state = TrainingState(**read_json(path))
        for name in ("step", "samples_seen", "world_size"):
            if not isinstance(getattr(state, name), int) or getattr(state, name) < 0:
                raise ValueError(f"{name} is {getattr(state, name)!r}")
        return state
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged or missing ({error}).") from None


def save_state(state: TrainingState, checkpoint: Path) -> None:
    """Write it into a checkpoint whose folder `trainer` is there. Raises OSError."""
    write_json(checkpoint / STATE, finite(asdict(state)))


class Contents(Protocol):
    """The parts that a checkpoint is made of."""

    @property
    def state(self) -> TrainingState: ...

    def write(self, folder: Path) -> None:
        """Write `policy/` and `trainer/` into a folder, without waiting for the disk. Raises OSError."""


class Captured(Contents, Protocol):
    """Contents captured at one moment, to be written while training goes on, such as a `Snapshot`."""

    @property
    def nbytes(self) -> int:
        """About the size on disk."""


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint.

    policy: provides its config, processor and card, but no weights. weights: what is saved as `policy/`, without frozen
    pretrained parts. trained: the weights that training continues with, if they differ (when weights are averaged).
    optimizer: its state dict. rank_states: one per rank.
    """

    policy: Policy
    weights: Mapping[str, torch.Tensor]
    trained: Mapping[str, torch.Tensor] | None
    optimizer: Mapping[str, Any]
    rank_states: Sequence[RankState]
    state: TrainingState
    answers: ReferenceAnswers | None = None  # of these weights; None where they were not validated

    @classmethod
    def of(
        cls,
        policy: Policy,
        trained: Policy,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        rank_states: Sequence[RankState],
    ) -> Snapshot:
        """A view of the current contents, which costs nothing and is valid until the next step; see `copied`.

        policy: what is saved as `policy/`; trained: what training continues with, often the same.
        """
        others = None if trained is policy else trained.own_state_dict()
        answers, tensors = answers_at(policy, state.step), policy.own_state_dict()
        return cls(policy, tensors, others, optimizer.state_dict(), rank_states, replace(state), answers)

    def copied(self, memory: HostMemory) -> Snapshot:
        """The same in separate memory, which the next steps do not change."""
        weights, trained, optimizer, rank_states = memory.copy(self._parts)
        return Snapshot(self.policy, weights, trained, optimizer, rank_states, self.state, self.answers)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors: about the size of the checkpoint on disk."""
        return sum(leaf.nbytes for leaf in tree_leaves(self._parts) if isinstance(leaf, torch.Tensor))

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.weights, self.trained, self.optimizer, self.rank_states

    def write(self, folder: Path) -> None:
        """Write `policy/` and `trainer/` into a folder. Raises OSError."""
        self.policy.save_pretrained(folder / "policy", weights=self.weights)
        if self.answers is not None:
            self.answers.save(folder / "policy")
        trainer = folder / "trainer"
        trainer.mkdir()
        save_nested(trainer / f"{_OPTIMIZER}.safetensors", self.optimizer)
        save_nested(trainer / f"{_RANKS}.safetensors", self.rank_states)
        if self.trained is not None:
            save_nested(trainer / f"{_WEIGHTS}.safetensors", self.trained)
        save_state(self.state, folder)


def answers_at(policy: Policy, step: int) -> ReferenceAnswers | None:
    """Return what a policy was last asked, if that was at this step."""
    answers = policy.reference_answers
    return answers if answers is not None and answers.step == step else None


def load_trained_weights(checkpoint: Path) -> dict[str, torch.Tensor] | None:
    """The weights that training continues with, if they differ from those in `policy/`. Raises InputError."""
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
    """A split in the form in which a checkpoint stores it, with the first rank's state."""
    return {"training": torch.from_numpy(split.training), "validation": torch.from_numpy(split.validation)}


def load_split(checkpoint: Path) -> KeptSplit | None:
    """The split of a run; None in older checkpoints, which do not store it. Raises InputError."""
    found = next((state["split"] for state in load_rank_states(checkpoint) if "split" in state), None)
    return None if found is None else KeptSplit(found["training"].numpy(), found["validation"].numpy())


def _load(checkpoint: Path, name: str) -> Any:
    older = checkpoint / "trainer" / _OLDER[name]
    if not older.exists():
        return load_nested(checkpoint / "trainer" / f"{name}.safetensors")
    try:
        return torch.load(older, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for a damaged file
        raise InputError(f"{older} is damaged ({type(error).__name__}: {error}).") from None


# ---- the states of ranks ---------------------------------------------------------------------------------


def state_of_rank(states: Sequence[RankState], rank: int, world_size: int) -> RankState:
    """The part of a checkpoint's rank states that belongs to a rank of a run with `world_size` ranks.

    With the same number of ranks: its own. With another number: no "random", and the sums of all ranks on rank 0, zeros
    elsewhere, so that means over all ranks continue. Older checkpoints have random states only, without sums.
    """
    states = [state if "random" in state else {"random": state, "sums": {}} for state in states]
    if len(states) == world_size:
        return states[rank]
    sums = {name: sum(state["sums"][name] for state in states) for name in states[0]["sums"]}
    return {"sums": sums if rank == 0 else {name: torch.zeros_like(value) for name, value in sums.items()}}


def random_state() -> dict[str, Any]:
    """The state of this process's random generators, in a form that loads without pickled code."""
    kind, keys, position, has_gauss, cached = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_initialized():  # asking an unused GPU would take memory on it
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Continue from a `random_state`. Raises InputError for one that is none."""
    try:
        torch.set_rng_state(state["torch"])
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"The state of the random numbers in the checkpoint is damaged ({type(error).__name__}: {error})."
        ) from None
