"""Where training stands: what of a checkpoint is not weights."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from atlas.errors import InputError
from atlas.system.documents import read_json

STATE = "trainer/state.json"  # in a checkpoint
RankState = Mapping[
    str, Any
]  # {"random": see `random_state`, "sums": {name: tensor}} of one rank; the first has "split"


@dataclass
class TrainingState:
    """Where training stands; everything else of it is in tensors."""

    step: int  # optimizer steps done
    samples_seen: int  # position in the endless stream of samples
    world_size: int
    best_step: int | None = None
    best_value: float | None = None
    wandb_id: str | None = None
    wandb_row: int | None = None  # the last one that wandb had been given
    checkpoints: int = 0  # written so far, this one included
    restarts: int = 0  # how often training has gone on from a checkpoint
    skipped_steps: int = 0  # left out, since their loss or gradient was not finite
    stopping_best: float | None = None  # the best value that early stopping has seen
    stopping_since: int = 0  # its values since
    stopped_short: bool = False  # a signal came before what is due at this step: validating, evaluating, saving
    batch_size: int | None = None  # samples a process, where data.batch_size is auto
    max_steps: int | None = None  # that the run is to have
    rate_steps: int | None = None  # see Schedule
    metric: str | None = None  # by which the best checkpoint is chosen
    value: float | None = None  # of that metric for these weights; None where it was not measured at this step


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


def state_of_rank(states: Sequence[RankState], rank: int, world_size: int) -> RankState:
    """What of a checkpoint's rank states belongs to a rank of a run of `world_size` ranks.

    The same number of ranks: its own. Another number: no "random", and the sums of all on rank 0, zeros elsewhere, so
    that means over all ranks go on. Those of older checkpoints are random states alone, without sums.
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
    if torch.cuda.is_initialized():  # to ask a GPU that is not used would take memory of it
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from a `random_state`."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
