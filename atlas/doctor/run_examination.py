"""`atlas doctor RUN`: finds why a run that trains well fails in rollouts, by the known silent bugs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlas.checks.acting.answers_check import check_answers
from atlas.checks.acting.bug_walk import Diagnosis, walk
from atlas.checks.acting.diagnosis import diagnose
from atlas.checks.data_check import check_data
from atlas.checks.finding import Finding
from atlas.config import Config, load_config
from atlas.data.formats import open_configured
from atlas.data.statistics import ColumnStatistics, scaling_of
from atlas.data.training_data import split_data
from atlas.environments.gym.gym_name import gym_name
from atlas.errors import InputError
from atlas.policies.base import Policy, load_policy
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.evaluation import evaluate_checkpoint
from atlas.rollout.input_recorder import InputRecorder
from atlas.runs.run_directory import is_run, read_run
from atlas.system.file_store import CONFIG
from atlas.system.files import follow

EPISODES = 12  # enough to see how the robot follows its actions
_OTHER = 0.02  # standard deviations; statistics of the same data agree better than this, whatever the order of sums


@dataclass(frozen=True)
class Examination:
    """The result of an examination. checkpoint: the best one, else the latest."""

    run_dir: Path
    checkpoint: Path
    diagnosis: Diagnosis
    findings: list[Finding]
    success: tuple[int, int] | None  # successes and episodes of the rollouts


def examine_run(
    run_dir: Path, episodes: int = EPISODES, beat: Callable[[str], None] = lambda what: None
) -> Examination:
    """Examine a run's policy files, its data, and rollouts of it, as far as there are any.

    episodes: of the rollouts; 0: none. beat: called with the name of each part. Raises InputError for a folder that is
    not a run, one without a checkpoint, and one whose config or policy is of another version.
    """
    if not is_run(run_dir):
        read_run(run_dir)  # raises an error that says what is wrong
    checkpoint = _checkpoint(run_dir)
    config = load_config(run_dir / CONFIG)
    findings: list[Finding] = []
    beat("the policy")
    policy = load_policy(checkpoint)
    findings += check_answers(policy)
    findings += _settings(config, policy.processor)
    beat("the data")
    findings += _data(config, policy, checkpoint / "policy")
    env = _world(config, policy)
    success = None
    if episodes and env is not None:
        beat(f"{episodes} rollouts in '{env}'")
        rollouts, success = _rollouts(config, checkpoint, env, episodes)
        findings += rollouts
    return Examination(run_dir, checkpoint, walk(findings, success), findings, success)


def _checkpoint(run_dir: Path) -> Path:
    for link in ("best", "latest"):
        found = follow(run_dir / "checkpoints" / link)
        if found.is_dir():
            return found
    raise InputError(f"The run {run_dir} has no checkpoint yet, and so no policy to examine.")


def _world(config: Config, policy: Policy) -> str | None:
    named = gym_name(config.evaluation.env, config.evaluation.gym)
    recorded = next((s.environment for s in policy.processor.statistics if s.environment is not None), None)
    env = recorded if named == "auto" else named
    return None if env == "none" else env


def _settings(config: Config, processor: PolicyProcessor) -> Iterator[Finding]:
    """Check that the policy scales as its run's config says."""
    configured = config.model.processor
    if processor.scaling != configured:
        yield Finding(
            "stats",
            "error",
            f"processor.json scales actions by {processor.scaling.action_normalization} and proprio by "
            f"{processor.scaling.proprio_normalization}, but the run's config by {configured.action_normalization} and "
            f"{configured.proprio_normalization}",
            "Load the processor.json that was saved with the weights.",
            bugs=("unnormalised",),
        )


# ---- data ----------------------------------------------------------------------------------------------------


def _data(config: Config, policy: Policy, folder: Path) -> list[Finding]:
    """The checks of the run's data, in its world where there is one, and whether the policy was trained on it."""
    try:
        dataset, cameras = open_configured(config.data)
        data = split_data(config, dataset, cameras, begun=folder)
        statistics = data.train.statistics()
    except InputError as error:
        return [Finding("stats", "info", f"the run's data was not checked: {error}")]
    found = list(_same_statistics(policy.processor, [(s.action, s.proprio) for s in statistics]))
    if len(statistics) == 1:  # the checks take one source
        found += check_data(config, replayed=2)
    return found


def _same_statistics(
    processor: PolicyProcessor, of_data: list[tuple[ColumnStatistics, ColumnStatistics]]
) -> Iterator[Finding]:
    if len(of_data) != len(processor.statistics):
        yield _other_data(f"it has statistics of {len(processor.statistics)} datasets, but the run has {len(of_data)}")
        return
    for source, (action, proprio) in zip(processor.statistics, of_data, strict=True):
        for what, policys, datas in (("action", source.action, action), ("proprio", source.proprio, proprio)):
            off = _apart(policys, datas)
            if off > _OTHER:
                yield _other_data(f"its {what} differs from that of {source.source} by up to {off:.2g} deviations")
                return
        kept = source.action_scaling
        if kept is not None and kept != scaling_of(action, processor.scaling.action_normalization):
            yield _other_data(f"it does not scale the actions of {source.source} as their statistics require")
            return
    summary = "the policy's statistics are those of the run's training episodes"
    yield Finding("stats", "info", summary, bugs=("statistics",))


def _apart(one: ColumnStatistics, other: ColumnStatistics) -> float:
    if len(one.mean) != len(other.mean):
        return float("inf")
    deviation = np.maximum(np.array(other.std), 1e-6)
    rows = ("mean", "std", "min", "max", "q01", "q99")
    return max(float((np.abs(np.array(getattr(one, r)) - np.array(getattr(other, r))) / deviation).max()) for r in rows)


def _other_data(why: str) -> Finding:
    return Finding(
        "stats",
        "error",
        f"the policy is not scaled by the statistics of the run's data: {why}",
        "Load the processor.json that was saved with the weights; if it is that one, the dataset has changed since.",
        bugs=("statistics",),
    )


# ---- rollouts ------------------------------------------------------------------------------------------------


def _rollouts(
    config: Config, checkpoint: Path, env: str, episodes: int
) -> tuple[list[Finding], tuple[int, int] | None]:
    recorder = InputRecorder()
    evaluation = config.evaluation
    try:
        report = evaluate_checkpoint(
            checkpoint,
            env,
            episodes,
            execute=evaluation.execute,
            ensemble=evaluation.ensemble,
            workers=evaluation.workers,
            recorder=recorder,
            delay_ms=evaluation.delay_ms,
            blend=evaluation.blend,
        )
    except InputError as error:
        return [Finding("starts", "info", f"there were no rollouts: {error}")], None
    assert recorder.policy is not None
    found = diagnose(recorder, recorder.policy.processor, env, report.outcomes, evaluation.execute)
    return found, (sum(outcome.success for outcome in report.outcomes), episodes)
