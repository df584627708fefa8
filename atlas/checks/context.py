"""The subject of the checks: an opened dataset, its split, and the world in which it will be evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from atlas.checks.finding import Finding
from atlas.config.model_section import ProcessorConfig
from atlas.data.episode import Episode, EpisodeDataset
from atlas.data.motion import MotionFit, explained_by_pose, fit_motion
from atlas.environments.environment import Environment, Simulator
from atlas.types import LIBERO_GROUPS

_SAMPLED_EPISODES = 200  # for checks that need no more; evenly over the dataset
# The worlds' controller is robosuite's OSC_POSE at 20 Hz, whose response to a command is known. See data/motion.py.
_POSES = 0.9  # R^2 above which actions are taken for poses
_LIBERO_FORMATS = ("libero-hdf5",)


@dataclass
class CheckContext:
    """dataset: as training reads it. train, val: the episodes on both sides of its split."""

    dataset: EpisodeDataset
    cameras: list[str]
    train: np.ndarray  # int64
    val: np.ndarray  # int64
    environment: Environment | None = None
    pictures: Path | None = None  # an existing folder for them; None: none are drawn
    replayed: int = 10  # episodes that are replayed at most
    found: list[Finding] = field(default_factory=list)  # by the earlier checks
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)  # how training scales numbers
    _recorded: dict[int, Episode] = field(default_factory=dict, init=False, repr=False)

    @property
    def episodes(self) -> int:
        return len(self.dataset)

    def sample(self, most: int) -> list[int]:
        """Return at most `most` episode numbers, evenly spread over the dataset."""
        return np.unique(np.linspace(0, self.episodes - 1, min(most, self.episodes)).round().astype(int)).tolist()

    def recorded(self, index: int) -> Episode:
        """One of a few episodes whose simulator states several checks look at: kept, so that these are read once."""
        if index not in self._recorded:
            self._recorded[index] = self.dataset.episode(index)
        return self._recorded[index]

    @cached_property
    def sampled(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(actions float64 [T, A], proprio float64 [T, P]) of some episodes."""
        episodes = [self.dataset.episode(i) for i in self.sample(_SAMPLED_EPISODES)]
        return [(e.actions.astype(np.float64), e.proprio.astype(np.float64)) for e in episodes]

    @cached_property
    def not_finite(self) -> list[int]:
        """The episodes whose actions or proprio contain non-finite numbers."""
        return [i for i in range(self.episodes) if not _finite(self.dataset.episode(i))]

    @cached_property
    def motion(self) -> MotionFit | None:
        """Fit how the hand follows the actions; None if proprio does not begin with its position, or too little moves.

        Actions and proprio must be finite.
        """
        return fit_motion(self.sampled, self.dataset.action_spec)

    @cached_property
    def poses_r2(self) -> float:
        """The share of the actions' position that the hand's next position explains; 0 if nothing can be compared."""
        positions = self.dataset.action_spec.spans("position")
        if len(positions) != 1 or not positions[0][0].delta or self.dataset.proprio_dim < len(positions[0][0].names):
            return 0.0
        return explained_by_pose(self.sampled, positions[0][1])

    @property
    def takes_poses(self) -> bool:
        """Whether actions that are said to be deltas are target poses."""
        return self.poses_r2 > _POSES and (self.motion is None or self.motion.axes_r2 < self.poses_r2)

    @cached_property
    def seconds_a_frame(self) -> float | None:
        """Return them by the simulator's clock, the first of its recorded numbers; None if there are none."""
        steps = []
        for index in self.sample(10):
            states = self.recorded(index).sim_states
            if states is not None and len(states) > 1:
                steps.append(np.diff(states[:, 0]))
        if not steps:
            return None
        step = float(np.median(np.concatenate(steps)))
        return step if step > 0 else None

    @property
    def known_controller(self) -> bool:
        """Whether actions go to LIBERO's controller."""
        libero = self.dataset.environment is not None and self.dataset.action_spec.groups == LIBERO_GROUPS
        return libero or self.dataset.format in _LIBERO_FORMATS

    @property
    def simulator(self) -> Simulator:
        """The environment, if recorded states can be shown in it, that is, if `no_replay` is None."""
        assert isinstance(self.environment, Simulator)
        return self.environment

    @cached_property
    def no_replay(self) -> str | None:
        """Why recorded states cannot be shown in the environment; None if they can."""
        if not isinstance(self.environment, Simulator):
            return "its state cannot be set"
        if any(self.recorded(i).sim_states is None for i in self.sample(self.replayed)):
            return "the dataset has no recorded states of a simulator"
        return None

    @cached_property
    def states_fit(self) -> bool:
        """Whether recorded states are as long as the environment's, in the task that they belong to."""
        episode = self.recorded(0)
        self.simulator.reset(seed=0, instruction=self.simulator.spec.known(episode.instruction))
        states = episode.sim_states
        return states is not None and states.shape[1] == len(self.simulator.get_state())

    def where_to_change(self, keys: str) -> str:
        """Say where to correct the meaning of actions; `keys` of data.features.action_spec, if the format has it."""
        converted = "where the data is converted"
        return f"{converted}, or by {keys} of data.features.action_spec" if self._has_features else converted

    @property
    def _has_features(self) -> bool:
        return self.dataset.format.startswith("lerobot")

    def has_errors(self, *checks: str) -> bool:
        """Whether one of these checks has found an error before."""
        return any(f.severity == "error" and f.check in checks for f in self.found)


def _finite(episode: Episode) -> bool:
    return bool(np.isfinite(episode.actions).all() and np.isfinite(episode.proprio).all())
