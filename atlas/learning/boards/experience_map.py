"""A map of the states that learning has visited, early and late, and of the demonstrations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from atlas.config import Config, VisDatasetConfig
from atlas.data.formats import open_configured
from atlas.drawing.figures import draw_map
from atlas.errors import InputError
from atlas.learning.boards.judged_episodes import Decides
from atlas.learning.experience_replay import Replay
from atlas.system.safe_text import cause
from atlas.tracking import RunTracker
from atlas.training.media.projection import principal_components, tsne
from atlas.types import Observation

logger = logging.getLogger(__name__)

Observations = dict[str, torch.Tensor]  # [n, ...] each
_SMALLEST = 1e-6  # standard deviation of a feature
THIRDS = ("the first third", "the second third", "the last third")
DEMONSTRATIONS = "demonstrations"


@dataclass(frozen=True)
class Projected:
    """States projected to two dimensions."""

    points: np.ndarray  # float32 [n, 2]
    components: np.ndarray  # float32 [n, C], the principal ones
    axes: tuple[str, str]


def project(features: np.ndarray, method: str) -> Projected:
    """Standardise states, float [n, D], and project them by `pca` or `tsne`."""
    standardised = (features - features.mean(0)) / np.maximum(features.std(0), _SMALLEST)
    components, explained = principal_components(standardised.astype(np.float32))
    if method == "tsne":
        return Projected(tsne(components), components, ("t-SNE 1", "t-SNE 2"))
    axes = (f"component 1 ({explained[0]:.0%} of the variance)", f"component 2 ({explained[1]:.0%})")
    return Projected(components[:, :2], components, axes)


def thirds(replay: Replay, count: int) -> dict[str, Observations]:
    """At most `count` states of a replay, in thirds by their time."""
    rows = replay.evenly(count)
    return {
        name: replay.observations_at(part)
        for name, part in zip(THIRDS, np.array_split(rows, 3), strict=True)
        if len(part)
    }


class ExperienceMap:
    """Logs `experience/states`: a figure and, for TensorBoard's projector, points. If this fails, it is switched off
    with one warning."""

    def __init__(self, config: VisDatasetConfig, tracker: RunTracker) -> None:
        self._config, self._tracker = config, tracker
        self._off = config.interval == 0

    @property
    def most_states(self) -> int:
        """The largest number of states shown; 0: none."""
        return 0 if self._off else self._config.frames

    def show(self, parts: Mapping[str, Observations], state: Callable[[Observations], torch.Tensor]) -> None:
        """Log a map. parts: observations by the name of their group. state: gives their states, float [n, D]."""
        if self._off or not parts:
            return
        try:
            self._show(parts, state)
        except Exception as error:  # of any kind: drawing is no reason to end a run
            self._off = True
            logger.warning("logging.media.vis_dataset is switched off: %s. Learning goes on.", cause(error).rstrip("."))

    def _show(self, parts: Mapping[str, Observations], state: Callable[[Observations], torch.Tensor]) -> None:
        with torch.no_grad():
            features = [state(observations).float().cpu().numpy() for observations in parts.values()]
        names, group = list(parts), np.repeat(np.arange(len(features)), [len(each) for each in features])
        if len(group) < 4:
            return
        projected = project(np.concatenate(features), self._config.method)
        title = f"{len(group)} states, as the policy's scaled inputs or features"
        drawn = draw_map(projected.points, group, names, projected.axes, title)
        self._tracker.log_image("experience/states", drawn)
        rows = [(names[each],) for each in group]
        self._tracker.log_projection("experience/states", projected.components, columns=("when",), rows=rows)


def demonstrated(config: Config, view: Decides, count: int) -> Observations | None:
    """Rows of at most `count` frames of the demonstrations that the initial policy was trained on; None, with a line in
    the log, if they cannot be read."""
    try:
        dataset, cameras = open_configured(config.data)
    except InputError as error:
        logger.info("The map of experience is without demonstrations: %s", error)
        return None
    lengths = np.asarray(dataset.lengths)
    places = np.linspace(0, int(lengths.sum()) - 1, min(count, int(lengths.sum()))).astype(np.int64)
    episodes = np.searchsorted(np.cumsum(lengths), places, side="right")
    frames = places - (np.cumsum(lengths) - lengths)[episodes]
    images = {camera: dataset.images(camera, episodes, frames) for camera in cameras}
    rows = []
    for place, (episode, frame) in enumerate(zip(episodes.tolist(), frames.tolist(), strict=True)):
        frame_images = {camera: images[camera][place] for camera in images}
        instruction = dataset.tasks[dataset.task_of[episode]]
        rows.append(view.look(Observation(frame_images, dataset.episode(episode).proprio[frame], instruction)))
    return columns_of(rows)


def columns_of(rows: Sequence[Mapping[str, np.ndarray]]) -> Observations:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
