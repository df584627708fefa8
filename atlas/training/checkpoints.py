"""Checkpoints of a run: complete or absent, with links to the latest and the best."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from atlas.errors import InputError
from atlas.files import replace_link, write_json
from atlas.policy import AtlasPolicy


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


class Checkpoints:
    """`<run_dir>/checkpoints/step_00001000/{policy/, trainer/}` and the links `latest` and `best`."""

    def __init__(self, run_dir: Path, keep_last_n: int) -> None:
        self.root = run_dir / "checkpoints"
        self._keep = keep_last_n

    def path(self, step: int) -> Path:
        return self.root / f"step_{step:08d}"

    def save(
        self,
        policy: AtlasPolicy,
        trained: AtlasPolicy,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        random_states: list[dict[str, Any]],
    ) -> Path:
        """Write a checkpoint under a temporary name, rename it, point `latest` at it, and remove old ones.

        policy: what is saved as `policy/`; trained: the weights that training goes on with, saved apart where they
        are other ones (an average is on). random_states: one a rank.
        """
        final = self.path(state.step)
        partial = self.root / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        policy.save_pretrained(partial / "policy")
        trainer = partial / "trainer"
        trainer.mkdir()
        torch.save(optimizer.state_dict(), trainer / "optimizer.pt")
        torch.save(random_states, trainer / "random.pt")
        if trained is not policy:
            torch.save(trained.own_state_dict(), trainer / "weights.pt")
        write_json(trainer / "state.json", asdict(state))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        replace_link(self.root / "latest", final.name)
        self._prune()
        return final

    def adopt(self, checkpoint: Path) -> Path:
        """Copy a checkpoint from elsewhere to where the run keeps its own, unless it is there; point `latest` at it."""
        final = self.path(load_state(checkpoint).step)
        if not final.exists():
            partial = self.root / f".{final.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            for part in ("policy", "trainer"):
                shutil.copytree(checkpoint / part, partial / part)
            os.replace(partial, final)
        replace_link(self.root / "latest", final.name)
        return final

    def mark_best(self, step: int) -> None:
        """Point `best` at a saved checkpoint."""
        replace_link(self.root / "best", self.path(step).name)
        self._prune()

    def steps(self) -> list[int]:
        """The steps that are saved, ascending."""
        return sorted(int(p.name.removeprefix("step_")) for p in self.root.glob("step_*") if p.is_dir())

    def _prune(self) -> None:
        best = self.root / "best"
        kept = {best.resolve().name} if best.exists() else set()
        for step in self.steps()[: -self._keep]:
            if self.path(step).name not in kept:
                shutil.rmtree(self.path(step))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the latest of the run it is. Raises InputError for neither."""
    for candidate in (path, path / "checkpoints" / "latest", path / "latest"):
        if (candidate / "trainer" / "state.json").exists():
            return candidate.resolve()
    raise InputError(f"There is no checkpoint to resume from at {path}: no trainer/state.json was found there.")


def load_state(checkpoint: Path) -> TrainingState:
    """Read where training stood. Raises InputError for a damaged file."""
    path = checkpoint / "trainer" / "state.json"
    try:
        return TrainingState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged or missing ({error}).") from None


def load_tensors(
    checkpoint: Path, policy: AtlasPolicy, trained: AtlasPolicy, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    """Put a checkpoint's weights into `policy` (what is saved) and `trained`, and its optimizer's state.

    Returns the random states of the ranks. Raises InputError where something does not fit.
    """
    policy.load_weights(checkpoint / "policy" / "model.safetensors")
    trainer = checkpoint / "trainer"
    weights = trainer / "weights.pt"
    if trained is not policy:
        if not weights.exists():
            raise InputError(
                f"{checkpoint} was saved without training.ema_decay, and this config sets it; set it to 0."
            )
        trained.load_own_state_dict(_load(weights))
    elif weights.exists():
        raise InputError(f"{checkpoint} was saved with training.ema_decay, and this config has none; set it as it was.")
    optimizer.load_state_dict(_load(trainer / "optimizer.pt"))
    states: list[dict[str, Any]] = _load(trainer / "random.pt")
    return states


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is missing from the checkpoint.") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}).") from None


def random_state() -> dict[str, Any]:
    """The state of this process's random generators, in a form that loads without pickled code."""
    kind, keys, position, has_gauss, cached = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from a `random_state`."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
