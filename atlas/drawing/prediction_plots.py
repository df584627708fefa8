"""Predicted and recorded chunks of a few validation samples, in figures and in camera views; and the worst samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from atlas.config import PlotLoggerConfig
from atlas.data.episode import EpisodeDataset, frame_instructions
from atlas.data.sampling.chunks import ChunkDataset
from atlas.drawing.action_curves import panels
from atlas.drawing.camera_view import find_camera, following
from atlas.drawing.figures import CameraView, draw_chunks, draw_views, shorten
from atlas.drawing.predictions import Predictions, Validated, frame_places, spread
from atlas.tracking import RunTracker
from atlas.types import ActionGroup, ActionSpec

_WORST_ERRORS = {  # the errors of an ActionSpec that are in the table
    "pose_l2_error": "pose L2 error",
    "position_error_mm": "position error (mm)",
    "joint_error_deg": "joint error (deg)",
    "joint_error_percent": "joint error (%)",
    "gripper_error": "gripper error",
}
_LONGEST_TITLE = 80  # characters, for the instruction
_MOST_EPISODES = 20  # used to measure how far the arm follows a command


@dataclass(frozen=True)
class PlotShare:
    """One rank's contribution."""

    chosen: Predictions
    worst: np.ndarray  # float64 [rows, 1 + errors]: the sample, then the values from `sample_errors`


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

    def share(self, validated: Validated) -> PlotShare:
        """This rank's part, for the main one to draw."""
        mine = validated.predictions
        errors = sample_errors(mine, self._dataset.action_spec)
        rows = np.concatenate([mine.index[:, None], errors], axis=1)
        return PlotShare(mine.of(self._samples), rows[np.argsort(-errors[:, 0])[: self._worst]])

    def show(self, parts: Sequence[PlotShare], validated: Validated) -> None:
        """Draw and log, on the main rank."""
        chosen = Predictions.merge([part.chosen for part in parts])
        self._show_chunks(chosen, validated)
        for number in range(len(chosen.index)):
            self._show_views(chosen, number)
        worst = np.concatenate([part.worst for part in parts])
        self._show_worst(worst[np.argsort(-worst[:, 1])[: self._worst]])

    def _show_chunks(self, chosen: Predictions, validated: Validated) -> None:
        spec = self._dataset.action_spec
        valid = ~chosen.is_pad[..., None]
        recorded, predicted = (
            np.where(valid, spec.readable(chunks), np.nan) for chunks in (chosen.recorded, chosen.predicted)
        )
        numbers = [str(number) for number in range(1, len(chosen.index) + 1)]
        title = (
            f"The chunks of validation samples {numbers[0]} to {numbers[-1]}, side by side: "
            f"{self._horizon} actions ({self._horizon / spec.control_hz:.2g} s) each"
        )
        drawn = draw_chunks(recorded, predicted, panels(spec, *validated.action_range), numbers, title)
        self._tracker.log_image("plots/chunks", drawn)

    def _show_views(self, chosen: Predictions, number: int) -> None:
        spec, valid = self._dataset.action_spec, ~chosen.is_pad[number]
        recorded, predicted = (spec.paths(chunks[number, valid]) for chunks in (chosen.recorded, chosen.predicted))
        for group, _ in spec.spans("position"):
            if 2 <= len(group.names) <= 3:  # otherwise a plane can show nothing
                start = 0 if group.delta else recorded[group.arm][0]
                self._show_arm(chosen, number, group, recorded[group.arm] - start, predicted[group.arm] - start)

    def _show_arm(
        self, chosen: Predictions, number: int, group: ActionGroup, recorded: np.ndarray, predicted: np.ndarray
    ) -> None:
        """recorded, predicted: float64 [steps, D], m, of the group's arm, from where the chunk begins."""
        steps, spec = int((~chosen.is_pad[number]).sum()), self._dataset.action_spec
        place, frame = self._places[chosen.index[number]].tolist()
        views = [self._view(camera, place, frame, recorded, predicted) for camera in self._cameras]
        what = "commanded motion" if group.delta else "commanded positions"
        note = f"{what} of {steps} actions ({steps / spec.control_hz:.2g} s)"
        if any(view.recorded is not None for view in views):
            note += f"; in the picture {self._factor():.2f} of it, as far as the arm follows in the recordings"
        instruction = shorten(frame_instructions(self._dataset, place)[frame], _LONGEST_TITLE)
        title = f"{number + 1}: {instruction} (episode {place}, frame {frame})"
        drawn = draw_views(views, recorded, predicted, group.names, title, note)
        arm = f"/{group.arm}" if len(spec.arms) > 1 else ""
        self._tracker.log_image(f"plots/views/{number + 1}{arm}", drawn)

    def _view(self, camera: str, place: int, frame: int, recorded: np.ndarray, predicted: np.ndarray) -> CameraView:
        """A camera's picture, with the motion drawn in if the places of camera and hand are known."""
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
            instruction = frame_instructions(self._dataset, place)[frame]
            rows.append([place, frame, instruction, *(round(error, 4) for error in errors)])
        columns = ("episode", "frame", "instruction", *_worst_errors(self._dataset.action_spec).values())
        self._tracker.log_table("plots/worst_samples", columns, rows)


def _worst_errors(spec: ActionSpec) -> dict[str, str]:
    """{name of an error: its column} for the errors that the actions have."""
    return {name: column for name, column in _WORST_ERRORS.items() if name in spec.error_names}


def sample_errors(predictions: Predictions, spec: ActionSpec) -> np.ndarray:
    """The errors of each sample that the table shows, as means over its steps like those of validation: float64
    [n, errors]."""
    errors = spec.errors(torch.from_numpy(predictions.predicted), torch.from_numpy(predictions.recorded))
    steps = np.stack([errors[name].numpy() for name in _worst_errors(spec)], axis=-1)  # [n, H, errors]
    valid = ~predictions.is_pad[..., None]
    return np.asarray((steps * valid).sum(1) / valid.sum(1))
