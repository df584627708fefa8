"""A two-dimensional map of the dataset: the features that the policy's vision computes for its frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from atlas.config import VisDatasetConfig
from atlas.data.episode import EpisodeDataset
from atlas.data.mixture import sources_of
from atlas.data.sampling.chunks import ChunkDataset
from atlas.drawing.figures import draw_map
from atlas.drawing.predictions import Validated, frame_places, spread
from atlas.errors import InputError
from atlas.policies.base import ShowsFeatures
from atlas.tracking import RunTracker

_KEPT_COMPONENTS = 50  # for TensorBoard's projector, and as input of t-SNE
_THUMBNAIL = 32  # pixels
_OUTCOMES = ("failure", "success", "not said")


def check_method(config: VisDatasetConfig) -> None:
    """Raises InputError if the method needs a package that is not installed."""
    if config.interval:
        check_tsne(config.method, "logging.media.vis_dataset.method is tsne, which", "set it to pca")


def check_tsne(method: str, asked: str, instead: str) -> None:
    """Raises InputError if the method is `tsne` and scikit-learn is not installed."""
    if method == "tsne" and importlib.util.find_spec("sklearn") is None:
        raise InputError(f"{asked} needs scikit-learn: pip install 'atlas-vla[vis]', or {instead}.")


@dataclass(frozen=True)
class FeatureShare:
    """One rank's contribution: n of the frames."""

    index: np.ndarray  # int64 [n], training samples
    features: np.ndarray  # float32 [n, D]
    thumbnails: np.ndarray | None  # uint8 [n, 32, 32, 3], from the first camera; None if images are not read


class DatasetMap:
    """Logs `dataset/frames_by_task`, `dataset/frames_by_source` of a mixture, and `dataset/frames_by_success` as
    figures, and `dataset/frames` for TensorBoard's projector.

    The features are those of unaugmented frames (from a feature cache: of the version that the sample has in the first
    epoch).
    """

    def __init__(
        self,
        config: VisDatasetConfig,
        dataset: EpisodeDataset,
        train_data: ChunkDataset,
        accelerator: Accelerator,
        batch_size: int,
        tracker: RunTracker,
    ) -> None:
        self._config, self._dataset, self._train_data, self._tracker = config, dataset, train_data, tracker
        self._accelerator, self._batch_size = accelerator, batch_size
        self._places = frame_places(dataset, train_data.episodes)
        self._frames = spread(len(train_data), config.frames)

    def share(self, validated: Validated) -> FeatureShare:
        """Look at this rank's part of the frames. Raises InputError if the policy does not show its features."""
        if not isinstance(validated.policy, ShowsFeatures):
            raise InputError(f"a policy of the type {validated.policy.config.type} has no features of images to show")
        policy: ShowsFeatures = validated.policy
        accelerator = self._accelerator
        mine = self._frames[accelerator.process_index :: accelerator.num_processes]
        parts = [self._look(policy, mine[i : i + self._batch_size]) for i in range(0, len(mine), self._batch_size)]
        thumbnails = [small for _, small in parts if small is not None]
        features = [features for features, _ in parts] or [np.empty((0, 0), np.float32)]  # for a rank without any
        return FeatureShare(mine, np.concatenate(features), np.concatenate(thumbnails) if thumbnails else None)

    @torch.no_grad()
    def _look(self, policy: ShowsFeatures, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """float32 [n, D], and thumbnails if there are images."""
        batch = self._train_data.__getitems__([(0, int(i)) for i in samples])
        small = None if batch.images is None else _thumbnails(batch.images[:, 0])
        with self._accelerator.autocast():
            features = policy.image_features(batch.to(self._accelerator.device))
        return features.float().cpu().numpy(), small

    def show(self, parts: Sequence[FeatureShare], validated: Validated) -> None:
        """Project, draw and log, on the main rank."""
        index = np.concatenate([part.index for part in parts])
        order = np.argsort(index)
        places = self._places[index[order]]  # [n, 2]
        features = np.concatenate([part.features for part in parts if len(part.features)])
        components, explained = principal_components(features[order])
        if self._config.method == "tsne":
            points, axes = tsne(components), ("t-SNE 1", "t-SNE 2")
        else:
            points = components[:, :2]
            axes = (f"component 1 ({explained[0]:.0%} of the variance)", f"component 2 ({explained[1]:.0%})")
        tasks, task = self._dataset.tasks, self._dataset.task_of[places[:, 0]]
        title = f"{len(places)} training frames as the policy's vision sees them"
        self._tracker.log_image("dataset/frames_by_task", draw_map(points, task, tasks, axes, f"{title}, by task"))
        sources = sources_of(self._dataset)
        if len(sources) > 1:  # such as experience beside demonstrations
            firsts = np.array([source.first for source in sources])
            source = np.searchsorted(firsts, places[:, 0], side="right") - 1
            drawn = draw_map(points, source, [s.name for s in sources], axes, f"{title}, by source")
            self._tracker.log_image("dataset/frames_by_source", drawn)
        success = self._outcomes(places[:, 0])
        if (success < 2).any():
            drawn = draw_map(points, success, _OUTCOMES, axes, f"{title}, by the episode's outcome")
            self._tracker.log_image("dataset/frames_by_success", drawn)
        thumbnails = [part.thumbnails for part in parts if part.thumbnails is not None]
        self._tracker.log_projection(
            "dataset/frames",
            components,
            columns=("task", "outcome", "episode", "frame"),
            rows=[
                (tasks[t], _OUTCOMES[s], episode, frame)
                for t, s, (episode, frame) in zip(task, success, places.tolist(), strict=True)
            ],
            thumbnails=np.concatenate(thumbnails)[order] if thumbnails else None,
        )

    def _outcomes(self, episodes: np.ndarray) -> np.ndarray:
        """Return for each of the episodes int64 [n] an index into _OUTCOMES."""
        success = {episode: self._dataset.episode(episode).success for episode in set(episodes.tolist())}
        return np.array([2 if success[e] is None else int(bool(success[e])) for e in episodes.tolist()])


def principal_components(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first (at most 50) principal components of features [n, D]: float32 [n, C], and each one's share of the
    variance [C]. C is at least 2; a component that the features do not have is 0."""
    centred = torch.from_numpy(features).double()
    centred -= centred.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    scores = (u * s)[:, :_KEPT_COMPONENTS]
    # A component's sign means nothing. Its longer side points right, so that maps of different steps look alike.
    scores *= torch.where((scores**3).sum(0) < 0, -1.0, 1.0)
    share = s**2 / (s**2).sum().clamp(min=1e-30)
    missing = max(0, 2 - scores.shape[1])
    return F.pad(scores, (0, missing)).float().numpy(), F.pad(share[: scores.shape[1]], (0, missing)).numpy()


def tsne(components: np.ndarray) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton, 2008) of components [n, C] to float32 [n, 2], the same for the same input."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(components) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=0, n_jobs=1)
    with threadpool_limits(1):  # on shared cores its threads wait for each other: 30 s instead of 1.5
        return np.asarray(model.fit_transform(components), np.float32)


def _thumbnails(images: torch.Tensor) -> np.ndarray:
    """uint8 [n, 3, H, W] to uint8 [n, 32, 32, 3]."""
    small = F.interpolate(images, size=(_THUMBNAIL, _THUMBNAIL), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1).numpy()
