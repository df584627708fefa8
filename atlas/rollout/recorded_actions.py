"""Plays recorded actions open loop in their world, which shows what a policy with perfect imitation could reach."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import numpy as np

from atlas.data.episode import EpisodeDataset
from atlas.environments.catalog import environment_spec
from atlas.environments.environment import EnvironmentSpec
from atlas.environments.rendering import RenderingGPU
from atlas.errors import InputError
from atlas.rollout.actor import image_size_for
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.evaluation import Evaluator
from atlas.rollout.success_report import EvaluationReport
from atlas.types import Observation


class RecordedActions:
    """An actor that plays all actions of a dataset's episode, and then ends."""

    processor = None

    def __init__(self, dataset: EpisodeDataset) -> None:
        self._dataset = dataset
        self._next: dict[int, np.ndarray] = {}

    def reset(self, episode: int, seed: int) -> None:
        """seed: the episode's number in the dataset."""
        self._next[episode] = self._dataset.episode(seed).actions

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        planned = {number: self._next[number] for number in observations}
        for number, actions in planned.items():
            self._next[number] = actions[:0]
        return planned


def evaluate_recorded(
    dataset: EpisodeDataset, env: str, episodes: int = 100, workers: int | None = None
) -> EvaluationReport:
    """Play the actions of at most `episodes` of a dataset's episodes from their recorded starts, and count successes.

    An outcome's seed is its episode's number in the dataset. Raises InputError where the dataset lacks recorded states,
    has actions of another size or instructions that the environment does not know, and where the environment is not a
    simulator.
    """
    if episodes < 1:
        raise InputError(f"--episodes must be at least 1, got {episodes}.")
    _check_fits(dataset, environment_spec(env))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(episodes, len(dataset))).round().astype(int)).tolist()
    planned = [_planned(dataset, number) for number in chosen]
    actor = RecordedActions(dataset)
    gpu = RenderingGPU.first_shown()  # nothing here computes on it
    with closing(Evaluator(env, image_size_for(actor), workers, gpu=gpu)) as evaluator:
        outcomes = evaluator.run(actor, planned, title=f"replaying {dataset.path} in '{env}'")
    return EvaluationReport(env, str(dataset.path), tuple(outcomes), "report", probes=("open_loop",))


def _check_fits(dataset: EpisodeDataset, spec: EnvironmentSpec) -> None:
    if dataset.episode(0).sim_states is None:
        raise InputError(
            f"--open-loop: {dataset.path} has no recorded simulator states to start from. Give recordings of "
            f"'{spec.name}', such as those of `atlas data record`."
        )
    if dataset.action_spec.dim != spec.action_spec.dim:
        raise InputError(
            f"--open-loop: the actions of {dataset.path} have {dataset.action_spec.dim} numbers, but those of "
            f"'{spec.name}' have {spec.action_spec.dim}."
        )
    unknown = [task for task in dataset.tasks if task not in spec.instructions]
    if unknown:
        raise InputError(f"--open-loop: '{spec.name}' does not know the instruction '{unknown[0]}' of {dataset.path}.")


def _planned(dataset: EpisodeDataset, number: int) -> PlannedEpisode:
    episode = dataset.episode(number)
    if episode.sim_states is None:
        raise InputError(f"--open-loop: episode {number} has no recorded simulator states.")
    start = episode.sim_states[0] if episode.init_state is None else episode.init_state
    return PlannedEpisode(number, number, episode.instruction, np.asarray(start))
