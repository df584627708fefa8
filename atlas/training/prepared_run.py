"""A run that is ready to be trained: the result of preparing, and the input of training."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from atlas.checkpoints.contents import load_split
from atlas.checks.finding import Finding
from atlas.checks.inspection import check_before_training, sentences
from atlas.config import Config
from atlas.data.sampling.kept_split import KeptSplit
from atlas.data.training_data import TrainingData, open_training_data
from atlas.registry import resolve_policy
from atlas.training.guards.watchdog import Heartbeat


class PreparedRun:
    """A run with a checked config, a settled name, and its data, which is opened once per process.

    heartbeat: told what was done, so that a `Watchdog` notices when nothing happens any more.
    """

    def __init__(self, config: Config, checkpoint: Path | None = None) -> None:
        """checkpoint: the one to resume from."""
        self.config, self.checkpoint = config, checkpoint
        self.heartbeat = Heartbeat()

    @property
    def run_dir(self) -> Path:
        return self.config.run_dir

    @cached_property
    def begun(self) -> Path | None:
        """The folder of the saved policy that training goes on or begins with. Raises InputError if there is none where
        `training.start_from` says."""
        if self.checkpoint is not None:
            return self.checkpoint / "policy"
        start = self.config.training.start_from
        return resolve_policy(start) if start is not None else None

    @cached_property
    def kept_split(self) -> KeptSplit | None:
        """The split of the data, for a run resumed from a checkpoint that says it."""
        return load_split(self.checkpoint) if self.checkpoint is not None else None

    @cached_property
    def data(self) -> TrainingData:
        """Raises InputError if it cannot be opened or split."""
        return open_training_data(self.config, self.kept_split, self.begun)

    @cached_property
    def findings(self) -> list[tuple[Path, Finding]]:
        """The findings of the checks that read no pictures. Raises InputError for what cannot be trained on."""
        data = self.data
        return check_before_training(data.dataset, data.train.episodes, data.val.episodes, self.config.model.processor)

    @property
    def warnings(self) -> list[str]:
        """The sentences that say what looks wrong in the data. Raises InputError for what cannot be trained on."""
        return sentences(self.findings)
