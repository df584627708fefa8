"""The policy's predictions for the validation samples, kept while validation runs anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from atlas.data.episode import EpisodeDataset
from atlas.policies.base import Policy
from atlas.types import Batch


@dataclass(frozen=True)
class Predictions:
    """Predictions for n validation samples."""

    index: np.ndarray  # int64 [n], the samples
    predicted: np.ndarray  # float32 [n, H, A], in the ActionSpec's units
    recorded: np.ndarray  # float32 [n, H, A]
    is_pad: np.ndarray  # bool [n, H]

    @classmethod
    def of_batch(cls, samples: Sequence[tuple[int, int]], predicted: torch.Tensor, batch: Batch) -> Predictions:
        """samples: (epoch, index) of the batch's rows; predicted float [B, H, A]."""
        assert batch.actions is not None and batch.action_is_pad is not None
        columns = predicted.float(), batch.actions.float(), batch.action_is_pad
        return cls(np.array([i for _, i in samples], np.int64), *(column.cpu().numpy() for column in columns))

    @classmethod
    def none(cls, horizon: int, action_dim: int) -> Predictions:
        """Predictions for no sample: for a rank whose share is empty."""
        chunks = np.empty((0, horizon, action_dim), np.float32)
        return cls(np.empty(0, np.int64), chunks, chunks, np.empty((0, horizon), bool))

    @classmethod
    def merge(cls, parts: Sequence[Predictions]) -> Predictions:
        """All of them, in the order of the samples."""
        order = np.argsort(np.concatenate([part.index for part in parts]))
        columns = ("index", "predicted", "recorded", "is_pad")
        return cls(*(np.concatenate([getattr(part, name) for part in parts])[order] for name in columns))

    def of(self, samples: np.ndarray) -> Predictions:
        """The predictions for those of the samples int64 [m] that are among these."""
        rows = np.flatnonzero(np.isin(self.index, samples))
        return Predictions(self.index[rows], self.predicted[rows], self.recorded[rows], self.is_pad[rows])


@dataclass(frozen=True)
class Validated:
    """The input of a logger after a validation: the policy, in eval mode, and its predictions on this rank."""

    policy: Policy
    predictions: Predictions

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest recorded actions of training, float64 [A], in the ActionSpec's units."""
        statistics = [source.action for source in self.policy.processor.statistics]
        return np.min([s.min for s in statistics], axis=0), np.max([s.max for s in statistics], axis=0)


def frame_places(dataset: EpisodeDataset, episodes: np.ndarray) -> np.ndarray:
    """The episode (in the dataset) and frame of every sample of a ChunkDataset for these: int64 [samples, 2]."""
    lengths = dataset.lengths[episodes]
    frames = [np.arange(length) for length in lengths]
    return np.stack([np.repeat(episodes, lengths), np.concatenate(frames)], axis=1)


def spread(total: int, most: int) -> np.ndarray:
    """Return at most `most` of the numbers 0 ... total - 1, evenly spread, int64."""
    count = min(total, most)
    return (2 * np.arange(count) + 1) * total // (2 * count)
