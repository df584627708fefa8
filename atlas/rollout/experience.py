"""Turns played episodes into recorded episodes, which can be written, viewed and trained on like demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas.data.episode import RecordedEpisode
from atlas.environments.environment import Environment, Simulator
from atlas.environments.scene_variation import VariableScene
from atlas.rollout.traces import Trace


@dataclass(frozen=True)
class Played:
    """A finished episode of a simulator, from step `first` on."""

    trace: Trace
    instruction: str
    first: int = 0  # less than its number of steps


def as_recorded(env: Environment, played: Played) -> RecordedEpisode:
    """Render the observation before each step; the actions are those that were executed.

    Rendering takes longer than a step, so it is done only for chosen episodes. The environment is left in another
    state; reset it.
    """
    trace, first = played.trace, played.first
    assert isinstance(env, Simulator) and isinstance(trace.scenes, np.ndarray)
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
