"""Turns played episodes into recorded episodes, which can be written, viewed and trained on like demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from atlas.data.episode import RecordedEpisode
from atlas.environments.environment import Environment, Simulator
from atlas.environments.scene_variation import VariableScene
from atlas.errors import InputError
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.episode_player import Executed, Segment
from atlas.rollout.success_report import EpisodeOutcome
from atlas.rollout.traces import Trace
from atlas.types import Observation


@dataclass(frozen=True)
class Played:
    """A finished episode of a simulator, from step `first` on."""

    trace: Trace
    instruction: str
    first: int = 0  # less than its number of steps


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode of any world that an actor has played."""

    outcome: EpisodeOutcome
    trace: Trace | None  # None where it was not recorded
    handed_over: int | None = None  # the step at which the world's expert took over; None: it did not


class Keeper(Protocol):
    """Takes episodes as each of them ends."""

    def keeps(self, played: PlayedEpisode) -> bool:
        """Whether what was seen in it is to be rendered."""
        ...

    def take(self, planned: PlannedEpisode, played: PlayedEpisode, recorded: RecordedEpisode | None) -> None:
        """recorded: with what was seen, if it is kept."""
        ...


def as_recorded(env: Environment, played: Played) -> RecordedEpisode:
    """Render the observation before each step; the actions are those that were executed.

    Rendering takes longer than a step, so it is done only for chosen episodes. The environment is left in another
    state; reset it. Raises InputError for one that is no simulator.
    """
    trace, first = played.trace, played.first
    if not isinstance(env, Simulator):
        raise InputError(
            f"'{env.spec.name}' is no simulator: what was seen in it cannot be rendered afterwards, so that no episode "
            "can be kept. cubes, metaworld-… and LIBERO's worlds are simulators."
        )
    assert isinstance(trace.scenes, np.ndarray)
    states = trace.scenes[first:-1]
    if isinstance(env, VariableScene):
        env.vary(trace.variation)
    env.reset(init_state=trace.scenes[0], instruction=played.instruction)  # it may be in another task's scene
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in env.spec.cameras}
    proprio = []
    for state in states:
        env.set_state(state)
        seen = env.observe()
        proprio.append(seen.proprio)
        for camera in images:
            images[camera].append(seen.images[camera])
    return RecordedEpisode(
        instruction=played.instruction,
        images={camera: np.stack(frames) for camera, frames in images.items()},
        proprio=np.stack(proprio),
        actions=trace.executed[first:].astype(np.float64),
        rewards=trace.rewards[first:],
        sim_states=states,
    )


def watched(seen: Sequence[Observation], done: Sequence[Executed]) -> RecordedEpisode:
    """An episode of T steps in any world. seen: before each step, and at the end. done: what was executed, in order."""
    before = seen[:-1]
    return RecordedEpisode(
        instruction=before[0].instruction,
        images={camera: np.stack([each.images[camera] for each in before]) for camera in before[0].images},
        proprio=np.stack([each.proprio for each in before]),
        actions=np.concatenate([each.actions for each in done]).astype(np.float64),
        rewards=np.concatenate([each.rewards for each in done]),
    )


def ended(episode: PlannedEpisode, segments: Sequence[Segment], judged: bool, handed_over: bool) -> PlayedEpisode:
    """Return what an episode was, of its pieces. judged: whether its world tells success."""
    failure = segments[-1].failure
    outcome = EpisodeOutcome(
        instruction=episode.instruction,
        seed=episode.seed,
        success=segments[-1].success,
        reward=sum(s.reward for s in segments),
        length=sum(s.steps for s in segments),
        failure=None if failure is None else failure.kind,
        failed_at=None if failure is None else failure.step,
        judged=judged,
    )
    before = sum(s.steps for s in segments[:-1])
    return PlayedEpisode(outcome, segments[-1].trace, before if handed_over else None)
