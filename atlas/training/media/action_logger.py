"""The distribution of the policy's actions compared with the recorded ones, and when it closes a gripper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlas.data.episode import EpisodeDataset
from atlas.drawing.action_curves import panels
from atlas.drawing.figures import draw_closing, draw_distributions, shorten
from atlas.drawing.predictions import Predictions, Validated, frame_places, spread
from atlas.tracking import RunTracker

_MOST_SAMPLES = 4096  # for the distributions
_LONGEST_TITLE = 64  # characters, beside the legend


@dataclass(frozen=True)
class ActionShare:
    """One rank's contribution."""

    sampled: Predictions
    episode: Predictions


class ActionLogger:
    """Logs the distributions `actions/<dimension>/predicted` and `…/recorded`, all of them in the figure
    `actions/distributions`, and `actions/gripper` (with two arms `actions/left/gripper` and so on): how far each
    gripper is told to close along one validation episode."""

    def __init__(self, dataset: EpisodeDataset, episodes: np.ndarray, tracker: RunTracker) -> None:
        """episodes: those of validation, int64."""
        self._dataset, self._tracker = dataset, tracker
        places = frame_places(dataset, episodes)
        self._samples = spread(len(places), _MOST_SAMPLES)
        self._episode = _episode_that_grips(dataset, episodes)
        self._frames = np.flatnonzero(places[:, 0] == self._episode)

    def share(self, validated: Validated) -> ActionShare:
        """This rank's part, for the main one to draw."""
        return ActionShare(validated.predictions.of(self._samples), validated.predictions.of(self._frames))

    def show(self, parts: Sequence[ActionShare], validated: Validated) -> None:
        """Draw and log, on the main rank."""
        self._show_distributions(Predictions.merge([part.sampled for part in parts]), validated)
        self._show_grippers(Predictions.merge([part.episode for part in parts]))

    def _show_distributions(self, sampled: Predictions, validated: Validated) -> None:
        spec = self._dataset.action_spec
        recorded, predicted = (
            spec.readable(chunks[~sampled.is_pad]) for chunks in (sampled.recorded, sampled.predicted)
        )  # [n, A]
        for number, name in enumerate(spec.names):
            self._tracker.log_histogram(f"actions/{name}/recorded", recorded[:, number])
            self._tracker.log_histogram(f"actions/{name}/predicted", predicted[:, number])
        title = f"All actions of the chunks of {len(sampled.index)} validation samples, in percent"
        drawn = draw_distributions(recorded, predicted, panels(spec, *validated.action_range), title)
        self._tracker.log_image("actions/distributions", drawn)

    def _show_grippers(self, episode: Predictions) -> None:
        spec = self._dataset.action_spec
        recorded, predicted = (spec.readable(chunks[:, 0]) for chunks in (episode.recorded, episode.predicted))
        instruction = self._dataset.tasks[self._dataset.task_of[self._episode]]
        title = f"Episode {self._episode}: {shorten(instruction, _LONGEST_TITLE)}"
        for dimension, group in spec.grippers:
            commands = recorded[:, dimension]
            label = commands if group.continuous else (commands > 0.5).astype(np.float64)
            drawn = draw_closing(predicted[:, dimension], label, group.readable[1], self._dataset.fps, title)
            arm = f"{group.arm}/" if len(spec.arms) > 1 else ""
            self._tracker.log_image(f"actions/{arm}gripper", drawn)


def _episode_that_grips(dataset: EpisodeDataset, episodes: np.ndarray) -> int:
    """The first episode in which a gripper is both open and closed; the first episode if there is none."""
    grippers = dataset.action_spec.grippers
    for episode in episodes.tolist() if grippers else ():
        actions = dataset.episode(episode).actions
        for dimension, group in grippers:
            if len(set((group.closed_share(actions[:, dimension]) > 0.5).tolist())) == 2:
                return int(episode)
    return int(episodes[0])
