"""Publishing of checkpoints to wandb as versions of a model, and what is said about each.

publisher = Publisher(config, tracker, run_facts(config, policy, dataset))
publisher.after_save(checkpoint, number, step, metrics, best)
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atlas
from atlas.config import Config
from atlas.policies.model_card import checkpoint_card
from atlas.registry.references import SOMEBODY, WANDB, safe_name
from atlas.system.file_store import artifact_files, total_bytes
from atlas.tracking import RunTracker
from atlas.tracking.provenance import git_state

if TYPE_CHECKING:
    from atlas.config import Bounds
    from atlas.data.episode import EpisodeDataset
    from atlas.policies.base import Policy

logger = logging.getLogger(__name__)

_HASH_LENGTH = 16
_KEPT_METRICS = ("val/", "eval/", "best_model/")
_NOT_OF_THE_MODEL = {"run_name", "output_dir", "wandb", "logging", "distributed", "model_management"}


class Publisher:
    """Decides after every checkpoint, by `model_management`, whether wandb gets it. For the main rank."""

    def __init__(self, config: Config, tracker: RunTracker, facts: Mapping[str, Any]) -> None:
        """facts: what holds for the whole run, see `run_facts`."""
        self._settings = config.model_management
        self._tracker = tracker
        self._facts = dict(facts)
        self.name = safe_name(str(config.run_name))
        self._place = f"{config.wandb.entity or SOMEBODY}/{config.wandb.project}"
        self._said: set[str] = set()

    def after_save(self, checkpoint: Path, number: int, step: int, metrics: Mapping[str, float], best: bool) -> bool:
        """Hand a checkpoint to wandb if it is due and good enough; True if it was handed over.

        number: the checkpoint's in the run, from 1. metrics: the latest value of each of the run's metrics. best:
        whether it is the best checkpoint so far.
        """
        every = self._settings.upload_frequency
        due = every > 0 and number % every == 0
        if not (due or (best and self._settings.save_best_models)) or not self._good_enough(metrics):
            return False
        metadata = self._metadata(checkpoint, step, metrics)
        reference = f"{WANDB}{self._place}/{self.name}:step-{step}"
        aliases = ["latest", f"step-{step}", *(["best"] if best else []), *self._settings.aliases]
        card = checkpoint_card(checkpoint, metadata, reference)
        self._tracker.log_model(checkpoint, self.name, aliases, metadata, step, description=card or "")
        return True

    def _good_enough(self, metrics: Mapping[str, float]) -> bool:
        return all([self._meets(name, bounds, metrics) for name, bounds in self._settings.upload_conditions.items()])

    def _meets(self, name: str, bounds: Bounds, metrics: Mapping[str, float]) -> bool:
        value = metrics.get(name)
        if value is None:
            self._say_once(name, "has no value yet")
            return False
        if math.isnan(value):
            self._say_once(name, "is not a number")
            return False
        low = -math.inf if bounds.min is None else bounds.min
        high = math.inf if bounds.max is None else bounds.max
        return low <= value <= high

    def _say_once(self, name: str, what: str) -> None:
        if name not in self._said:
            self._said.add(name)
            logger.warning(
                "No model is uploaded while %s %s: model_management.upload_conditions asks for it.", name, what
            )

    def _metadata(self, checkpoint: Path, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        kept = {name: float(value) for name, value in sorted(metrics.items()) if name.startswith(_KEPT_METRICS)}
        epoch = {"epoch": metrics["train/epoch"]} if "train/epoch" in metrics else {}
        size = {"file_size_mb": round(total_bytes(artifact_files(checkpoint)) / 1e6, 3)}
        # All metrics in one entry: wandb takes at most 100 entries.
        return {**self._facts, "step": step, **epoch, **size, "metrics": kept}


def run_facts(config: Config, policy: Policy, dataset: EpisodeDataset) -> dict[str, Any]:
    """The facts that all models of a run share: parameter counts, hashes of config and data, the code's commit."""
    parameters = list(policy.parameters())
    return {
        "run_name": config.run_name,
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "data": str(dataset.path),
        "dataset_fingerprint": dataset.fingerprint(),
        "config_hash": config_hash(config),
        "git_commit": git_commit(),
        "atlas_version": atlas.__version__,
    }


def config_hash(config: Config) -> str:
    """A hash of what determines the model: the config without names, folders, loggers and machines. 16 hex digits."""
    values = {key: value for key, value in config.model_dump(mode="json").items() if key not in _NOT_OF_THE_MODEL}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_HASH_LENGTH]


def git_commit() -> str | None:
    """The commit of Atlas's own code, with `+changes` if files differ from it; None if it is not a git checkout."""
    state = git_state()
    return None if state is None else state["commit"] + ("+changes" if state["dirty"] else "")
