"""The processor between raw observations and the network, which is saved, loaded and served with the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atlas.config import ProcessorConfig
from atlas.data.image_fit import ImageFit, gather_views
from atlas.data.inputs import TrainingInputs
from atlas.data.sampling.history import ONE_FRAME, History
from atlas.data.sampling.relative_actions import RelativeActions
from atlas.data.statistics import METHODS, SMALLEST_RANGE, ColumnStatistics, DatasetStatistics, scaling_of
from atlas.errors import InputError
from atlas.system.documents import read_json
from atlas.system.files import write_json
from atlas.types import ActionSpec, Batch, Observation

logger = logging.getLogger(__name__)

_LARGEST = 65536  # pixels, actions or numbers


@dataclass(frozen=True)
class PolicyProcessor:
    """Image geometry, camera order, statistics and the meaning of actions. It never rotates or flips images."""

    cameras: tuple[str, ...]  # empty for a policy without vision
    camera_size: int  # pixels of the square camera images it was trained from; simulators render at it
    image_size: int  # pixels the network sees
    action_horizon: int
    proprio_dim: int
    action_spec: ActionSpec
    statistics: tuple[DatasetStatistics, ...]  # one per source; a batch's `source` says which
    scaling: ProcessorConfig
    inputs: TrainingInputs | None = None  # its inputs in training; None if they were not kept
    fit: ImageFit | None = None  # how the policy itself fits whole images; None: it gets cropped squares
    history: History = ONE_FRAME  # the frames it looks at
    relative: RelativeActions | None = None  # the actions learned relative to the state; None: none are

    @property
    def views(self) -> int:
        """The number of images that the network sees."""
        return self.history.steps * len(self.cameras)

    @property
    def proprio_width(self) -> int:
        """The number of proprio's numbers that the network gets."""
        return self.history.steps * self.proprio_dim

    def to_learn(self, actions: torch.Tensor, proprio: torch.Tensor) -> torch.Tensor:
        """Chunks [B, H, A] in the form that the network learns, before scaling: relative to the state if so configured.
        proprio: the batch's, [B, proprio_width]."""
        if self.relative is None:
            return actions
        return self.relative.relative(actions, proprio[:, -self.proprio_dim :])

    def to_execute(self, actions: torch.Tensor, proprio: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_learn`: chunks [B, H, A] in the ActionSpec's units, from the network's unscaled output."""
        if self.relative is None:
            return actions
        return self.relative.absolute(actions, proprio[:, -self.proprio_dim :])

    def batch(self, observations: Sequence[Observation], source: int = 0) -> Batch:
        """Observations of running episodes as a Batch without actions; the images go through `gather_views`, as in
        training. Raises InputError if an observation lacks a camera or its past, or has another proprio."""
        for observation in observations:
            if len(observation.past) != self.history.steps - 1:
                raise InputError(
                    f"The policy looks at {self.history.steps} frames, {self.history.stride} control steps apart, so "
                    f"an observation must have {self.history.steps - 1} earlier ones in `past`; it has "
                    f"{len(observation.past)}."
                )
        seen = [[*observation.past, observation] for observation in observations]
        for observation in (each for frames in seen for each in frames):
            missing = [camera for camera in self.cameras if camera not in observation.images]
            if missing:
                raise InputError(
                    f"The policy needs the cameras {list(self.cameras)}; the observation lacks {missing} "
                    f"and has {list(observation.images)}."
                )
            if observation.proprio.shape != (self.proprio_dim,):
                raise InputError(
                    f"The policy needs a proprio of {self.proprio_dim} numbers, got {observation.proprio.shape}."
                )
        views = [[o.images[camera] for o in frames for camera in self.cameras] for frames in seen]
        return Batch(
            images=gather_views(views, self.image_size, self.fit) if self.cameras else None,
            proprio=torch.stack([torch.cat([torch.from_numpy(o.proprio).float() for o in each]) for each in seen]),
            instruction=[o.instruction for o in observations],
            source=torch.full((len(observations),), source),
        )

    def source_for(self, environment: str | None = None) -> int:
        """The source whose statistics apply in a rollout: the first that was recorded in that world (None: in any).

        If none was, the first of all; with several sources the log says which it is.
        """
        recorded = [i for i, s in enumerate(self.statistics) if s.environment is not None]
        fitting = [i for i in recorded if environment in (None, self.statistics[i].environment)]
        source = next(iter(fitting or recorded), 0)
        if len(self.statistics) > 1:
            why = "the first of all: none was" if not fitting else "the only one"
            why = f"the first of {len(fitting)}" if len(fitting) > 1 else why
            logger.info(
                "Rollouts use the statistics of '%s', %s recorded in %s.",
                self.statistics[source].source,
                why,
                environment or "a simulator",
            )
        return source

    def action_scaler(self) -> Scaler:
        """The scaler of actions [..., A] of each source; a gripper's open end becomes -1, its closed one 1."""
        return Scaler(
            [s.action if s.relative_action is None else s.relative_action for s in self.statistics],
            self.scaling.action_normalization,
            ends={dimension: (gripper.open, gripper.closed) for dimension, gripper in self.action_spec.grippers},
            methods=[s.action_scaling for s in self.statistics],
        )

    def proprio_scaler(self) -> Scaler:
        """The scaler of proprio [..., proprio_width] of each source, the same for all frames."""
        steps = self.history.steps
        return Scaler(
            [s.proprio.repeated(steps) for s in self.statistics],
            self.scaling.proprio_normalization,
            methods=[None if s.proprio_scaling is None else s.proprio_scaling * steps for s in self.statistics],
            margin=self.scaling.proprio_margin,
        )

    def with_margin(self, margin: float) -> PolicyProcessor:
        """A copy that clips proprio with this margin; see ProcessorConfig."""
        return replace(self, scaling=self.scaling.model_copy(update={"proprio_margin": margin}))

    def save(self, path: Path) -> None:
        """Write processor.json."""
        values = {
            "cameras": list(self.cameras),
            "camera_size": self.camera_size,
            "image_size": self.image_size,
            "action_horizon": self.action_horizon,
            "proprio_dim": self.proprio_dim,
            "action_spec": self.action_spec.to_dict(),
            "scaling": self.scaling.model_dump(),
            "statistics": [s.to_dict() for s in self.statistics],
            "inputs": None if self.inputs is None else self.inputs.to_dict(),
        }
        if self.fit is not None:
            values["fit"] = self.fit.to_dict()
        if self.history.steps > 1:
            values["history"] = self.history.to_dict()
        if self.relative is not None:
            values["relative"] = self.relative.to_dict()
        write_json(path, values)

    @classmethod
    def load(cls, path: Path) -> PolicyProcessor:
        """Read processor.json. Raises InputError if it is damaged or has another form."""
        try:
            values: dict[str, Any] = read_json(path)
            spec = ActionSpec.from_dict(values["action_spec"])
            relative = values.get("relative")
            processor = cls(
                cameras=tuple(values["cameras"]),
                camera_size=values["camera_size"],
                image_size=values["image_size"],
                action_horizon=values["action_horizon"],
                proprio_dim=values["proprio_dim"],
                action_spec=spec,
                statistics=tuple(DatasetStatistics.from_dict(s) for s in values["statistics"]),
                scaling=ProcessorConfig(**values["scaling"]),
                inputs=TrainingInputs.from_dict(values["inputs"]) if values.get("inputs") else None,
                fit=ImageFit.from_dict(values["fit"]) if values.get("fit") else None,
                history=History.from_dict(values["history"]) if "history" in values else ONE_FRAME,
                relative=None if relative is None else RelativeActions.from_dict(relative, spec, values["proprio_dim"]),
            )
            _check(processor)
        except InputError as error:  # from its action_spec
            raise InputError(f"{path} is not an Atlas processor: {error}") from None
        except FileNotFoundError:
            raise InputError(f"{path} is missing; a saved policy has one.") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"{path} is not an Atlas processor: {error!r}") from None
        return processor


def scaled_well(statistics: DatasetStatistics, scaling: ProcessorConfig) -> DatasetStatistics:
    """The statistics, with the scaling of each dimension: the config's wherever the statistics permit it."""
    return replace(
        statistics,
        action_scaling=scaling_of(statistics.relative_action or statistics.action, scaling.action_normalization),
        proprio_scaling=scaling_of(statistics.proprio, scaling.proprio_normalization),
    )


def _check(processor: PolicyProcessor) -> None:
    """Raise ValueError, which names what is wrong, for an unusable processor."""
    for name in ("camera_size", "image_size", "action_horizon", "proprio_dim"):
        value = getattr(processor, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
            raise ValueError(f"{name} is {value!r}, expected a number from 1 to {_LARGEST}")
    if not processor.statistics:
        raise ValueError("statistics is empty")
    if not all(isinstance(camera, str) for camera in processor.cameras):
        raise ValueError(f"cameras is {list(processor.cameras)}, expected names")
    for source in processor.statistics:
        _check_columns("action", source.action, processor.action_spec.dim)
        _check_columns("proprio", source.proprio, processor.proprio_dim)
        if (source.relative_action is None) != (processor.relative is None):
            raise ValueError("statistics and relative do not agree on whether actions are relative")
        if source.relative_action is not None:
            _check_columns("relative_action", source.relative_action, processor.action_spec.dim)
        _check_scaling("action_scaling", source.action_scaling, processor.action_spec.dim)
        _check_scaling("proprio_scaling", source.proprio_scaling, processor.proprio_dim)


def _check_columns(what: str, columns: ColumnStatistics, width: int) -> None:
    for name, row in asdict(columns).items():
        if len(row) != width or not all(isinstance(v, int | float) and math.isfinite(v) for v in row):
            raise ValueError(f"{name} of {what} in statistics is {list(row)}, expected {width} finite numbers")


def _check_scaling(name: str, methods: Sequence[str] | None, width: int) -> None:
    if methods is not None and (len(methods) != width or not set(methods) <= set(METHODS)):
        raise ValueError(f"{name} in statistics is {list(methods)}, expected {width} of {list(METHODS)}")


class Scaler(nn.Module):
    """Scales each dimension by its source's statistics, to about [-1, 1] or to unit deviation.

    For the dimensions in `ends`, the first end becomes -1 and the second 1, whatever the statistics. The numbers are
    not weights, and not in the state dict.
    """

    offset: torch.Tensor  # [sources, D]
    scale: torch.Tensor  # [sources, D]
    low: torch.Tensor  # [sources, D], normalised; where values are clipped
    high: torch.Tensor

    def __init__(
        self,
        statistics: Sequence[ColumnStatistics],
        method: str,
        ends: Mapping[int, tuple[float, float]] | None = None,
        methods: Sequence[Sequence[str] | None] | None = None,
        margin: float | None = None,
    ) -> None:
        """methods: per source and dimension, instead of `method`; None if `method` holds for all of them. margin:
        values are clipped at the statistics' range widened by this factor of it on both sides; None: no clipping."""
        super().__init__()
        offsets, scales = [], []
        for columns, of_each in zip(statistics, methods or [None] * len(statistics), strict=True):
            of_each = of_each or [method] * len(columns.mean)
            offset, scale = torch.zeros(len(columns.mean)), torch.ones(len(columns.mean))
            for name in set(of_each):
                here = torch.tensor([each == name for each in of_each])
                offset_here, scale_here = _offset_and_scale(columns, name)
                offset, scale = torch.where(here, offset_here, offset), torch.where(here, scale_here, scale)
            scale = scale.clamp(min=SMALLEST_RANGE)
            for dimension, (first, second) in (ends or {}).items():
                offset[dimension], scale[dimension] = (first + second) / 2, (second - first) / 2
            offsets.append(offset)
            scales.append(scale)
        self.register_buffer("offset", torch.stack(offsets), persistent=False)
        self.register_buffer("scale", torch.stack(scales), persistent=False)
        self._clips = margin is not None
        if margin is not None:
            ranges = [_widened(columns, margin) for columns in statistics]
            for name, rows in zip(("low", "high"), zip(*ranges, strict=True), strict=True):
                self.register_buffer(name, (torch.stack(rows) - self.offset) / self.scale, persistent=False)

    def normalize(self, values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """values [B, ..., D], source int64 [B]."""
        scaled = (values - self._of(self.offset, source, values)) / self._of(self.scale, source, values)
        if not self._clips:
            return scaled
        return scaled.clamp(self._of(self.low, source, values), self._of(self.high, source, values))

    def denormalize(self, values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`."""
        return values * self._of(self.scale, source, values) + self._of(self.offset, source, values)

    @staticmethod
    def _of(numbers: torch.Tensor, source: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        rows = numbers[source]  # [B, D]
        return rows.view(rows.shape[0], *[1] * (values.ndim - 2), rows.shape[1])


def _widened(columns: ColumnStatistics, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The range [D] of the statistics, widened on both sides by `margin` times its width. A very narrow range counts as
    wide as the smallest scale."""
    low, high = torch.tensor(columns.min), torch.tensor(columns.max)
    more = margin * (high - low).clamp(min=SMALLEST_RANGE)
    return low - more, high + more


def _offset_and_scale(columns: ColumnStatistics, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[D] each."""
    if method == "mean_std":
        return torch.tensor(columns.mean), torch.tensor(columns.std)
    low, high = (
        torch.tensor(getattr(columns, name)) for name in (("q01", "q99") if method == "quantiles" else ("min", "max"))
    )
    return (low + high) / 2, (high - low) / 2
