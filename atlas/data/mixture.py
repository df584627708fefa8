"""Several datasets as one: their episodes one after the other, with cameras and actions brought to the same form."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlas.config import SourceConfig
from atlas.data.episode import Episode, EpisodeDataset, Numbers, frame_tasks, images_by_episode
from atlas.errors import InputError
from atlas.types import ActionSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A dataset, and how it is brought to the common form of a mixture's sources."""

    name: str
    dataset: EpisodeDataset
    first: int  # the number of its first episode in the mixture
    cameras: Mapping[str, str] | None = None  # {the mixture's name: its own}; None: the same
    scale: np.ndarray | None = None  # float32 [A], factors to the mixture's units; None: the units are the same
    offset: np.ndarray | None = None  # float32 [A], added afterwards; None: nothing
    weight: float = 1.0

    def camera(self, name: str) -> str:
        """The dataset's own name of a camera."""
        return name if self.cameras is None else self.cameras[name]

    def actions(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 [..., A]: the actions in some rows of its dataset's numbers, in the mixture's units."""
        actions = self.dataset.numbers().actions[rows]
        actions = actions if self.scale is None else actions * self.scale
        return actions if self.offset is None else actions + self.offset


def sources_of(dataset: EpisodeDataset) -> tuple[Source, ...]:
    """The sources of a mixture; for any other dataset, itself as the only source."""
    if isinstance(dataset, Mixture):
        return dataset.sources
    return (Source(dataset.path.name, dataset, 0),)


class Mixture:
    """Episodes of several datasets as one dataset. Episodes keep their order: the first dataset's come first.

    Equal instructions of two datasets are one task. If several datasets were recorded in a simulator, evaluation uses
    the first one's.
    """

    format = "mixture"
    sides: np.ndarray | None = None  # None: each source is split as it says itself

    def __init__(self, configs: Sequence[SourceConfig], datasets: Sequence[EpisodeDataset], cameras: Sequence[str]):
        """configs: the datasets' sections. cameras: the common names of all sources' cameras.

        Raises InputError that names the source and what differs in it, if the datasets cannot be combined.
        """
        names = [config.label for config in configs]
        spec = _common_spec(names, datasets)
        _check_proprio(names, datasets)
        firsts = np.cumsum([0, *map(len, datasets)])
        self.sources = tuple(
            Source(
                config.label,
                dataset,
                int(first),
                {camera: own for camera, own in camera_names(config, dataset).items() if camera in cameras},
                *_conversion(dataset.action_spec, spec),
                weight=config.weight,
            )
            for config, dataset, first in zip(configs, datasets, firsts, strict=False)
        )
        self.path = Path(" + ".join(names))  # a name for people
        self.cameras = list(cameras)
        self.action_spec = spec
        self.fps, self.proprio_dim = datasets[0].fps, datasets[0].proprio_dim
        self.tasks = list(dict.fromkeys(task for dataset in datasets for task in dataset.tasks))
        place = {task: i for i, task in enumerate(self.tasks)}
        of_source = [np.array([place[task] for task in dataset.tasks])[dataset.task_of] for dataset in datasets]
        self.task_of = np.concatenate(of_source)
        self.lengths = np.concatenate([dataset.lengths for dataset in datasets])
        self._source_of = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
        self._first_row = np.cumsum(self.lengths) - self.lengths
        self._simulated = _simulated(self.sources)
        self.environment = None if self._simulated is None else self._simulated.dataset.environment

        self._task_places = [np.array([self.tasks.index(task) for task in dataset.tasks]) for dataset in datasets]

    def __len__(self) -> int:
        return len(self.lengths)

    def frame_tasks(self, index: int) -> np.ndarray | None:
        """int64 [T], an index into `tasks` for each frame of an episode; None if all have the same."""
        number = self._source_of[index]
        source = self.sources[number]
        tasks = frame_tasks(source.dataset, index - source.first)
        return None if tasks is None else self._task_places[number][tasks]

    def episode(self, index: int) -> Episode:
        source = self.sources[self._source_of[index]]
        return MixedEpisode(source, index - source.first)

    def images(self, camera: str, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3], upright, for episodes whose images have the same size."""
        return images_by_episode(self, camera, episodes, frames)

    def numbers(self) -> Numbers:
        """Copies of all episodes' numbers, in memory; `ChunkDataset` reads those of the sources instead."""
        episodes = [self.episode(i) for i in range(len(self))]
        return Numbers(np.concatenate([e.actions for e in episodes]), np.concatenate([e.proprio for e in episodes]))

    def rows(self, index: int) -> slice:
        """An episode's rows in `numbers`."""
        return slice(int(self._first_row[index]), int(self._first_row[index] + self.lengths[index]))

    def image_size(self, camera: str) -> tuple[int, int]:
        """The size for the source whose simulator evaluation uses, or otherwise for the first source."""
        source = self._simulated or self.sources[0]
        return source.dataset.image_size(source.camera(camera))

    def fingerprint(self) -> str:
        parts = [
            (
                source.name,
                source.dataset.fingerprint(),
                [source.camera(camera) for camera in self.cameras],
                None if source.scale is None else source.scale.tolist(),
                *([] if source.offset is None else [source.offset.tolist()]),
            )
            for source in self.sources
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class MixedEpisode:
    """An episode of a source, with the mixture's camera names and action units."""

    def __init__(self, source: Source, index: int) -> None:
        self._source, self._index = source, index
        self._episode = source.dataset.episode(index)
        self.instruction = self._episode.instruction

    def __len__(self) -> int:
        return len(self._episode)

    @property
    def actions(self) -> np.ndarray:
        return self._source.actions(self._source.dataset.rows(self._index))

    @property
    def proprio(self) -> np.ndarray:
        return self._episode.proprio

    @property
    def rewards(self) -> np.ndarray | None:
        return self._episode.rewards

    @property
    def success(self) -> bool | None:
        return self._episode.success

    @property
    def sim_states(self) -> np.ndarray | None:
        return self._episode.sim_states

    @property
    def init_state(self) -> np.ndarray | None:
        return self._episode.init_state

    @property
    def model_xml(self) -> str | None:
        return self._episode.model_xml

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        """uint8 [n, H, W, 3], upright."""
        return self._episode.images(self._source.camera(camera), frames)


def camera_names(config: SourceConfig, dataset: EpisodeDataset) -> dict[str, str]:
    """{the mixture's name: the dataset's own} for the cameras that a source brings to a mixture. Raises InputError."""
    names = config.cameras
    if names is None:
        return {camera: camera for camera in dataset.cameras}
    names = names if isinstance(names, dict) else {camera: camera for camera in names}
    unknown = [own for own in names.values() if own not in dataset.cameras]
    if unknown:
        raise InputError(
            f"the cameras of the dataset '{config.label}' (data.datasets) name {unknown}, but {dataset.path} has the "
            f"cameras {dataset.cameras}."
        )
    return names


def common_cameras(
    configs: Sequence[SourceConfig], datasets: Sequence[EpisodeDataset], wanted: Sequence[str] | None
) -> list[str]:
    """The cameras of a mixture: the wanted ones, which all sources must have; otherwise all, if they are the same.

    In the order asked for, or the first source's. Raises InputError that says which source lacks what.
    """
    has = {config.label: list(camera_names(config, dataset)) for config, dataset in zip(configs, datasets, strict=True)}
    lists = list(has.values())
    cameras = list(wanted) if wanted is not None else list(dict.fromkeys(camera for names in lists for camera in names))
    lacking = [
        f"'{name}' lacks {missing} (it has {names})"
        for name, names in has.items()
        if (missing := [camera for camera in cameras if camera not in names])
    ]
    if lacking:
        common = [camera for camera in lists[0] if all(camera in names for names in lists)]
        others = f"use those that all have, data.cameras=[{', '.join(common)}], or " if common else ""
        raise InputError(
            f"The datasets of the mixture have different cameras: {'; '.join(lacking)}. {others.capitalize()}"
            f"{'say' if others else 'Say'} which camera is which in data.datasets, such as "
            f"{{path: …, cameras: {{{cameras[0]}: its own name}}}}."
        )
    return cameras


def _common_spec(names: Sequence[str], datasets: Sequence[EpisodeDataset]) -> ActionSpec:
    """The first source's spec, after checking that the others differ from it at most in units. Raises InputError."""
    spec = datasets[0].action_spec
    for name, dataset in zip(names[1:], datasets[1:], strict=True):
        other = dataset.action_spec
        differing = [
            f"{what} is {value!r} in '{names[0]}' and {its!r} in '{name}'"
            for what, value, its in spec.differences(other, ends=False)
        ]
        if differing:
            raise InputError(
                f"The actions of the datasets '{names[0]}' and '{name}' mean different things: {'; '.join(differing)}. "
                f"Correct '{name}' in data.datasets, features.action_spec, or leave it out."
            )
    return spec


def _conversion(own: ActionSpec, common: ActionSpec) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The factors that bring actions in a source's units to the common ones, and what is added afterwards: float32 [A]
    each; None if nothing has to be done."""
    if own == common:
        return None, None
    scale, offset = np.ones(own.dim, np.float32), np.zeros(own.dim, np.float32)
    for (mine, part), target in zip(own.spans(), common.groups, strict=True):
        if mine.kind == "gripper":
            factor = (target.closed - target.open) / (mine.closed - mine.open)
            scale[part], offset[part] = factor, target.open - factor * mine.open
        else:
            scale[part] = mine.unit / target.unit
    return scale, offset if offset.any() else None


def _check_proprio(names: Sequence[str], datasets: Sequence[EpisodeDataset]) -> None:
    dims = {name: dataset.proprio_dim for name, dataset in zip(names, datasets, strict=True)}
    if len(set(dims.values())) > 1:
        widths = ", ".join(f"{dim} in '{name}'" for name, dim in dims.items())
        raise InputError(
            f"The datasets of the mixture have different numbers of proprio: {widths}. Say which of a LeRobot "
            "dataset's features are its proprio in data.datasets, features.proprio."
        )


def _simulated(sources: Sequence[Source]) -> Source | None:
    """The first source that was recorded in a simulator."""
    found = [source for source in sources if source.dataset.environment is not None]
    if len(found) > 1:
        logger.info(
            "Several datasets were recorded in simulators (%s); evaluation uses that of '%s', with its statistics.",
            ", ".join(f"'{source.name}': {source.dataset.environment}" for source in found),
            found[0].name,
        )
    return found[0] if found else None
