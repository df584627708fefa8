"""Predicted and recorded chunks of a few validation samples, in figures and in camera views; and the worst samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlas.config import PlotLoggerConfig
from atlas.data.chunks import ChunkDataset
from atlas.data.episode import EpisodeDataset
from atlas.drawing.camera_view import find_camera, following
from atlas.drawing.figures import CameraView, draw_chunks, draw_views, shorten
from atlas.drawing.predictions import Predictions, Validated, frame_places, spread
from atlas.drawing.units import commanded_path, panels, readable
from atlas.tracking import RunTracker
from atlas.types import ActionSpec

_WORST_COLUMNS = ("episode", "frame", "instruction", "pose L2 error", "position error (mm)", "gripper error")
_LONGEST_TITLE = 80  # characters, for the instruction
_MOST_EPISODES = 20  # from which it is learned how far the arm follows a command


@dataclass(frozen=True)
class PlotShare:
    """What one rank adds."""

    chosen: Predictions
    worst: np.ndarray  # float64 [rows, 4]: sample, pose L2 error, position error (mm), gripper error


class PlotLogger:
    """Logs `plots/chunks`, `plots/views/<number>` and the table `plots/worst_samples`."""

    def __init__(
        self,
        config: PlotLoggerConfig,
        dataset: EpisodeDataset,
        cameras: Sequence[str],
        val_data: ChunkDataset,
        tracker: RunTracker,
    ) -> None:
        self._dataset, self._cameras, self._tracker = dataset, cameras, tracker
        self._episodes, self._horizon = val_data.episodes, val_data.horizon
        self._places = frame_places(dataset, val_data.episodes)
        whole = np.flatnonzero(val_data.valid_steps == val_data.valid_steps.max())  # not cut by the episode's end
        self._samples = whole[spread(len(whole), config.samples)]  # the same ones each time
        self._worst = config.worst
        self._following: tuple[float | None] | None = None  # in a tuple once it is known

    def share(self, seen: Validated) -> PlotShare:
        """This rank's part, for the main one to draw."""
        mine = seen.predictions
        errors = sample_errors(mine, self._dataset.action_spec)
        rows = np.concatenate([mine.index[:, None], errors], axis=1)
        return PlotShare(mine.of(self._samples), rows[np.argsort(-errors[:, 0])[: self._worst]])

    def show(self, parts: Sequence[PlotShare], seen: Validated) -> None:
        """Draw and log, on the main rank."""
        chosen = Predictions.merge([part.chosen for part in parts])
        self._show_chunks(chosen, seen)
        for number in range(len(chosen.index)):
            self._show_views(chosen, number)
        worst = np.concatenate([part.worst for part in parts])
        self._show_worst(worst[np.argsort(-worst[:, 1])[: self._worst]])

    def _show_chunks(self, chosen: Predictions, seen: Validated) -> None:
        spec = self._dataset.action_spec
        there = ~chosen.is_pad[..., None]
        recorded, predicted = (
            np.where(there, readable(chunks, spec), np.nan) for chunks in (chosen.recorded, chosen.predicted)
        )
        numbers = [str(number) for number in range(1, len(chosen.index) + 1)]
        title = (
            f"The chunks of validation samples {numbers[0]} to {numbers[-1]}, side by side: "
            f"{self._horizon} actions ({self._horizon / spec.control_hz:.2g} s) each"
        )
        drawn = draw_chunks(recorded, predicted, panels(spec, *seen.action_range), numbers, title)
        self._tracker.log_image("plots/chunks", drawn)

    def _show_views(self, chosen: Predictions, number: int) -> None:
        spec = self._dataset.action_spec
        names = spec.names[slice(*spec.position)]
        if not 2 <= len(names) <= 3:
            return  # nothing that a plane could show
        valid = ~chosen.is_pad[number]
        first = chosen.recorded[number, 0]
        recorded, predicted = (
            commanded_path(chunks[number, valid], spec, first) for chunks in (chosen.recorded, chosen.predicted)
        )
        place, frame = self._places[chosen.index[number]].tolist()
        episode = self._dataset.episode(place)
        views = [self._view(camera, place, frame, recorded, predicted) for camera in self._cameras]
        what = "commanded motion" if spec.delta else "commanded positions"
        note = f"{what} of {valid.sum()} actions ({valid.sum() / spec.control_hz:.2g} s)"
        if any(view.recorded is not None for view in views):
            note += f"; in the picture {self._factor():.2f} of it, as far as the arm follows in the recordings"
        title = f"{number + 1}: {shorten(episode.instruction, _LONGEST_TITLE)} (episode {place}, frame {frame})"
        drawn = draw_views(views, recorded, predicted, names, title, note)
        self._tracker.log_image(f"plots/views/{number + 1}", drawn)

    def _view(self, camera: str, place: int, frame: int, recorded: np.ndarray, predicted: np.ndarray) -> CameraView:
        """With the motion drawn in where the camera's place is known and the hand's is too."""
        episode = self._dataset.episode(place)
        pixels = episode.images(camera, [frame])[0]
        calibrated, factor = find_camera(episode.model_xml, camera), self._factor()
        if calibrated is None or factor is None:
            return CameraView(camera, pixels)
        hand = episode.proprio[frame, :3]
        paths = [calibrated.project(hand + factor * path, *pixels.shape[:2]) for path in (recorded, predicted)]
        return CameraView(camera, pixels, *paths)

    def _factor(self) -> float | None:
        if self._following is None:
            episodes = [self._dataset.episode(int(episode)) for episode in self._episodes[:_MOST_EPISODES]]
            self._following = (following(episodes, self._dataset.action_spec, self._horizon),)
        return self._following[0]

    def _show_worst(self, worst: np.ndarray) -> None:
        rows = []
        for sample, *errors in worst.tolist():
            place, frame = self._places[int(sample)].tolist()
            instruction = self._dataset.tasks[self._dataset.task_of[place]]
            rows.append([place, frame, instruction, *(round(error, 4) for error in errors)])
        self._tracker.log_table("plots/worst_samples", _WORST_COLUMNS, rows)


def sample_errors(found: Predictions, spec: ActionSpec) -> np.ndarray:
    """Pose L2 error (in the spec's units), position error (mm) and gripper error of each sample, means over its
    steps: float64 [n, 3]. The same as `val/pose_l2_error`, `val/position_error_mm` and `val/gripper_error` are."""
    difference = found.predicted.astype(np.float64) - found.recorded
    closing = (np.clip(found.predicted[..., spec.gripper], -1, 1) + 1) / 2
    steps = np.stack(
        [
            np.linalg.norm(difference[..., spec.pose], axis=-1),
            np.linalg.norm(difference[..., slice(*spec.position)], axis=-1) * spec.position_unit_m * 1000,
            np.abs(closing - (found.recorded[..., spec.gripper] > 0)),
        ],
        axis=-1,
    )  # [n, H, 3]
    valid = ~found.is_pad[..., None]
    return np.asarray((steps * valid).sum(1) / valid.sum(1))
