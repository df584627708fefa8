"""Recorded actions, played in their world without looking: what a policy that imitates perfectly could reach."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from atlas.data.episode import Episode, EpisodeDataset
from atlas.environments.base import Environment
from atlas.environments.catalog import make_environment
from atlas.errors import InputError
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.system.progress import progress_bar

_IMAGE_SIZE = 16  # nothing is looked at


def evaluate_recorded(dataset: EpisodeDataset, env: str, episodes: int = 100) -> EvaluationReport:
    """Play the actions of at most so many of a dataset's episodes from their recorded starts, and count the successes.

    An outcome's seed is its episode's number in the dataset. Raises InputError where the dataset has no recorded
    states, actions of another size, or instructions that the environment does not know.
    """
    if episodes < 1:
        raise InputError(f"--episodes must be at least 1, got {episodes}.")
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(episodes, len(dataset))).round().astype(int)).tolist()
    outcomes = []
    with (
        closing(make_environment(env, _IMAGE_SIZE)) as world,
        progress_bar(f"replaying {dataset.path} in '{env}'", len(chosen)) as advance,
    ):
        _check_fits(dataset, world)
        for number in chosen:
            outcomes.append(_play(world, dataset.episode(number), number))
            advance(1)
    return EvaluationReport(env, str(dataset.path), tuple(outcomes), "report", probes=("open_loop",))


def _check_fits(dataset: EpisodeDataset, world: Environment) -> None:
    spec = world.spec
    if not spec.restorable or dataset.episode(0).sim_states is None:
        raise InputError(
            f"--open-loop: {dataset.path} has no recorded states of a simulator to start from, or '{spec.name}' cannot "
            "be put into one. Give recordings of that world, such as `atlas data record` makes."
        )
    if dataset.action_spec.dim != spec.action_spec.dim:
        raise InputError(
            f"--open-loop: the actions of {dataset.path} have {dataset.action_spec.dim} numbers, and those of "
            f"'{spec.name}' {spec.action_spec.dim}."
        )
    unknown = [task for task in dataset.tasks if task not in spec.instructions]
    if unknown:
        raise InputError(f"--open-loop: '{spec.name}' does not know the instruction '{unknown[0]}' of {dataset.path}.")


def _play(world: Environment, episode: Episode, number: int) -> EpisodeOutcome:
    states = episode.sim_states
    if states is None:
        raise InputError(f"--open-loop: episode {number} has no recorded states of a simulator.")
    start = states[0] if episode.init_state is None else episode.init_state
    world.reset(init_state=start, instruction=episode.instruction)
    reward, success, steps = 0.0, False, 0
    for action in episode.actions:
        result = world.step(action, observe=False)
        reward, success, steps = reward + result.reward, success or result.success, steps + 1
        if result.done:
            break
    return EpisodeOutcome(episode.instruction, number, success, reward, steps)
