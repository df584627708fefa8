"""Takes minutes: the default policy learns to reach the named cube."""

from __future__ import annotations

from pathlib import Path

import pytest

import atlas
from atlas.rollout.evaluation import evaluate_checkpoint
from atlas.rollout.recording import RecordSettings, record


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_short_training_lifts_cubes_and_listens(tmp_path: Path) -> None:
    """With a third of the default job's steps and half of its demonstrations, far better than luck or deafness."""
    record(RecordSettings(episodes=120), tmp_path / "cubes")
    job = [f"data.path={tmp_path / 'cubes'}", f"output_dir={tmp_path}", "run_name=short", "evaluation.episodes=0"]

    result = atlas.train(None, [*job, "training.max_steps=1400"])
    as_it_is = evaluate_checkpoint(result.best_checkpoint, "cubes", episodes=20)
    told_the_other = evaluate_checkpoint(result.best_checkpoint, "cubes", episodes=20, instruction_shuffle=True)

    assert result.metrics["val/gripper_accuracy"] > 0.9
    assert as_it_is.success_rate >= 0.4
    assert told_the_other.success_rate <= 0.2
