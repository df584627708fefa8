"""The checkpoints of a run of learning by reward, kept as those of supervised training are.

checkpoints/step_…/policy/         the present policy
                   trainer/        facts.json, state.json, and what the algorithm needs to go on
            latest                 a link to the newest
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas.checkpoints import Checkpoints, TrainingState, find_undamaged, saved_steps
from atlas.checkpoints.contents import save_state
from atlas.policies.base import Policy
from atlas.system.documents import read_json
from atlas.system.files import write_json

_FACTS = "facts.json"


@dataclass(frozen=True)
class _Learned:
    """The contents of a checkpoint; `write_learner` writes the algorithm's part of them into a folder."""

    policy: Policy
    state: TrainingState
    facts: dict[str, Any]
    write_learner: Callable[[Path], None]

    def write(self, folder: Path) -> None:
        self.policy.save_pretrained(folder / "policy")
        trainer = folder / "trainer"
        trainer.mkdir()
        self.write_learner(trainer)
        write_json(trainer / _FACTS, self.facts)
        save_state(self.state, folder)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run; None before there is one. Raises InputError for one that is damaged."""
    return find_undamaged(run_dir) if saved_steps(run_dir / "checkpoints") else None


class LearnerCheckpoints:
    """The newest checkpoint of a run; the one before it is removed."""

    def __init__(self, folder: Path, policy: Policy, world_size: int) -> None:
        """folder: the run's."""
        self._folder, self._policy, self._world_size = folder, policy, world_size
        self._checkpoints = Checkpoints(folder, retention=1)

    def save(self, steps: int, facts: dict[str, Any], write_learner: Callable[[Path], None]) -> None:
        """Keep a checkpoint after so many steps in the world, instead of one after as many. Raises OSError."""
        state = TrainingState(steps, samples_seen=0, world_size=self._world_size)
        self._checkpoints.write(_Learned(self._policy, state, facts, write_learner))
        self._checkpoints.prune()

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The algorithm's part of the newest checkpoint, and its facts; None before there is one. Raises InputError for
        one that is damaged."""
        checkpoint = newest_checkpoint(self._folder)
        if checkpoint is None:
            return None
        facts: dict[str, Any] = read_json(checkpoint / "trainer" / _FACTS)
        return checkpoint / "trainer", facts
