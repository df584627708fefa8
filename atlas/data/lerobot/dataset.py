"""Reads LeRobot datasets of versions 3.0, 2.1 and 2.0, with images in videos or in Parquet files."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from atlas.config.data_sections import FeaturesConfig
from atlas.data.episode import Numbers
from atlas.data.lerobot.columns import FORMAT, Columns, open_columns
from atlas.data.lerobot.damage import leave_out_damaged
from atlas.data.lerobot.episodes import Episodes, missing_files, read_episodes, read_tasks
from atlas.data.lerobot.extras import EpisodeExtras, read_extras, read_sim_states
from atlas.data.lerobot.features import find_features, report
from atlas.data.lerobot.image_copies import copy_images, sizes_in
from atlas.data.lerobot.images import ParquetImages
from atlas.data.lerobot.info import INFO, Feature, read_info
from atlas.data.lerobot.subtasks import with_subtasks
from atlas.data.lerobot.whole import check_whole
from atlas.data.noops import without_noops
from atlas.data.orientation import Orientation, turn_upright
from atlas.data.origin import mend
from atlas.data.video import FRAME_TOLERANCE, video_reader
from atlas.errors import InputError
from atlas.system.files import write_text
from atlas.system.paths import cache_root, files_below
from atlas.system.progress import progress_bar

logger = logging.getLogger(__name__)

_LOOKED_INTO = 32  # of a camera's files, to check that they are as they should be
# Folders in the cache, with one file for each state of a dataset whose files were found complete, or of one size.
_CHECKED, _SIZED = "whole", "sizes"
_SHOWN_FROM = 200  # files; fewer are checked too fast for a progress bar


def is_lerobot(path: Path) -> bool:
    """Whether a folder holds, or should hold, a LeRobot dataset."""
    return (path / INFO).is_file() or (path / "meta").is_dir() or any((path / "data").glob("chunk-*"))


class LeRobotDataset:
    """Episodes of a LeRobot dataset, in the order of their numbers.

    At the start only metadata is read, and the presence of all files is checked. Actions, proprio and times are
    converted to Atlas's form once, when they are first needed, and mapped into memory from the cache. Only the images
    that are asked for are read.

    Raises InputError that names file and key for a dataset that is incomplete, damaged, or not what it says.
    """

    sides: np.ndarray | None = None

    def __init__(
        self,
        path: Path,
        orientation: Orientation | None = None,
        drop_noops: bool = False,
        features: FeaturesConfig | None = None,
        cameras: Sequence[str] | None = None,
        skip_damaged: bool = False,
        instruction: str | None = None,
    ) -> None:
        """features, cameras: as for `find_features`; files for other cameras may be absent. instruction: of episodes
        that have none.
        skip_damaged: leave out the episodes that cannot be read, each with a warning."""
        self.path = path
        self._info = read_info(path)
        self._extras = read_extras(path)
        known = read_tasks(path, self._info)
        tasks = list(known[1].values())
        self._features = find_features(self._info, features, orientation, cameras, self._extras, tasks)
        report(self._info, self._features, orientation or (self._extras.orientation if self._extras else None))
        self.environment = self._extras.environment if self._extras else None
        self._images = ParquetImages()
        self._copied = False
        self._source = read_episodes(path, self._info, known, self._features.video_keys, instruction)
        if features is not None and features.instruction == "subtask":
            self._source = with_subtasks(self._source, path, self._info)
        if skip_damaged:
            self._source = self._undamaged()
        elif nowhere := self._source.without_place():
            first, key = next(iter(nowhere.items()))
            raise InputError(
                f"{path}/meta/episodes does not say where {len(nowhere)} of {len(self._source.length)} episodes are in "
                f"the videos of '{key}', such as episode {self._source.number[first]}. Leave these episodes out "
                "(--skip-damaged), or the camera (data.cameras)."
            )
        self.format = f"lerobot-{self._info.version}"
        self.fps = self._info.fps
        self.tasks = self._source.tasks
        self.task_of = self._source.task
        self.cameras = list(self._features.cameras)
        self.action_spec = self._features.action_spec
        self.orientation = self._features.orientation
        self.proprio_dim = self._features.proprio_dim
        missing = missing_files(path, self._source.all_files())
        if missing:
            raise InputError(f"{path} lacks {len(missing)} of its files, such as {missing[0]}. {mend(path)}")
        self.lengths = self._source.length
        self._first = np.cumsum(self._source.length) - self._source.length  # the first row in the columns
        self._kept = [self._moving(i) for i in range(len(self))] if drop_noops else None
        if self._kept is not None:
            self.lengths = np.array([len(kept) for kept in self._kept], np.int64)

    def __len__(self) -> int:
        return len(self._source.length)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "columns"}
        return state | {"_copied": True}

    @cached_property
    def columns(self) -> Columns:
        """The numbers of all frames, mapped into memory, episode after episode, including no-ops.

        Raises InputError if the data files are damaged, or not what the metadata says.
        """
        folder = cache_root() / "lerobot" / _digest(self._digest_of(self._source.files), self._reading)
        columns = open_columns(folder, self.path, self._info, self._features, self._source)
        if not self._copied:  # a data worker's copy has nothing new to report
            for note in columns.notes:
                logger.warning("%s: %s", self.path, note)
        return columns

    @property
    def _tolerance(self) -> float:
        """Seconds that a video frame may be off."""
        return FRAME_TOLERANCE / self._info.fps

    @property
    def notes(self) -> list[str]:
        """Say what was taken for what, in sentences, where names or a robot_type told it."""
        robot = self._features.robot
        return [] if robot is None else [*robot.notes, *([robot.doubt] if robot.doubt else [])]

    @property
    def has_videos(self) -> bool:
        return bool(self._features.video_keys)

    @property
    def has_libero_proprio(self) -> bool:
        """Whether the proprio is known to be LIBERO's eight numbers."""
        known = self._features.libero is not None or (self._extras is not None and self._extras.libero_proprio)
        return known and not self._features.rotations

    @property
    def proprio_names(self) -> list[str]:
        """The dataset's names for the numbers of the proprio; fewer if it does not name all."""
        return self._features.proprio_names

    def frame_tasks(self, index: int) -> np.ndarray | None:
        """int64 [T], an index into `tasks` for each frame of an episode; None if all have the same."""
        task = self.columns.task if len(self._source.task_sets[index]) > 1 else None
        return None if task is None else task[self.rows(index)].astype(np.int64)

    def episode(self, index: int) -> LeRobotEpisode:
        return LeRobotEpisode(self, index)

    def image_size(self, camera: str) -> tuple[int, int]:
        return self._features.cameras[camera].image_size

    def fingerprint(self) -> str:
        """Changes with the files' names, sizes and modification times, and with how they are read."""
        kept = int(self.lengths.sum())
        return _digest(
            self._digest_of(self._source.all_files()), self.orientation, kept, self.tasks, self._reading, self.cameras
        )

    def check_files(self) -> None:
        """Check that every file is complete, judged by its structure, that all images have the stated size, and that
        the last frame of some files is as stated; and prepare what images are read from.

        Done once for each state of the dataset, and noted in the cache. Raises InputError that names what is wrong.
        """
        stored = [feature.key for feature in self._features.cameras.values() if feature.dtype == "image"]
        copy_images(self.path, self._source.files, stored)  # not part of what is noted, since copies can be deleted

        def look() -> None:
            check_whole(self.path, self._source.all_files())
            for index in self._last_in_files():
                for camera in self.cameras:
                    self.images(camera, np.array([index]), self.lengths[[index]] - 1)

        state = self._state()
        self._once(_CHECKED, state, look)
        self._once(_SIZED, state, self._look_at_sizes)

    def check_sizes(self) -> None:
        """Check that all images have the size that the dataset states, from the headers of videos and images.

        Done once for each state of the dataset. Raises InputError that names the first file that differs.
        """
        self._once(_SIZED, self._state(), self._look_at_sizes)

    def _state(self) -> str:
        """Changes with all files and with which cameras are used."""
        keys = [feature.key for feature in self._features.cameras.values()]
        return _digest(self._digest_of(self._source.all_files()), keys)

    def _once(self, what: str, state: str, look: Callable[[], None]) -> None:
        """Run a check, unless a note in the cache says that it has passed before. state: of the dataset."""
        marker = cache_root() / "lerobot" / what / state
        if marker.is_file():
            return
        look()
        try:
            write_text(marker, "")
        except OSError as error:
            raise InputError(
                f"{marker.parent} cannot be written to ({error.strerror}); set ATLAS_CACHE_DIR to another folder."
            ) from None

    def _look_at_sizes(self) -> None:
        of = self._source
        looked = [(feature, file) for feature in self._features.cameras.values() for file in _files_of(of, feature)]
        title = f"Looking at the images of {self.path.name}" if len(looked) >= _SHOWN_FROM else None
        with progress_bar(title, len(looked)) as advance:
            for feature, name in looked:
                path = self.path / name
                if feature.dtype == "video":
                    self._check_size(feature, path, np.array([video_reader().size(path)]))
                else:
                    here = np.flatnonzero(of.file == of.files.index(name))
                    rows = np.concatenate([np.arange(of.row[i], of.row[i] + of.length[i]) for i in here])
                    self._check_size(feature, path, sizes_in(path, feature.key)[rows], rows)
                advance(1)

    def _check_size(self, feature: Feature, path: Path, sizes: np.ndarray, rows: np.ndarray | None = None) -> None:
        """sizes: int64 [n, 2]; rows: in the file, if the images are in rows. Raises InputError."""
        wrong = np.flatnonzero((sizes != feature.image_size).any(axis=1))
        if not len(wrong):
            return
        height, width = sizes[wrong[0]]
        row = "" if rows is None else f" in row {rows[wrong[0]]}"
        if not height:
            raise InputError(f"{path}: the image '{feature.key}'{row} is missing or damaged. {mend(path)}")
        raise InputError(
            f"{path}: the images '{feature.key}' are {height} x {width} pixels (height x width){row}, "
            f"but {self._info.path} says {feature.image_size[0]} x {feature.image_size[1]}. Correct the shape there, "
            f"or bring all images to one size. {mend(path)}"
        )

    def numbers(self) -> Numbers:
        return Numbers(self.columns.action, self.columns.proprio)

    def rows(self, index: int) -> slice | np.ndarray:
        """An episode's rows in `columns` and `numbers`."""
        first = int(self._first[index])
        if self._kept is None:
            return slice(first, first + int(self.lengths[index]))
        return first + self._kept[index]

    def images(self, camera: str, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3], upright."""
        # The frames as the dataset counts them, including no-ops.
        stored = frames
        if self._kept is not None:
            stored = np.array([self._kept[episode][frame] for episode, frame in zip(episodes, frames, strict=True)])
        assert len(stored) and stored.min() >= 0 and (stored < self._source.length[episodes]).all()
        video = self._features.cameras[camera].dtype == "video"
        times = self.columns.timestamp[self._first[episodes] + stored].astype(np.float64) if video else None
        return turn_upright(self._stored_images(self._source, camera, episodes, stored, times), self.orientation)

    def _stored_images(
        self, of: Episodes, camera: str, episodes: np.ndarray, frames: np.ndarray, times: np.ndarray | None
    ) -> np.ndarray:
        """uint8 [n, H, W, 3] as they are stored. times: of the frames, in seconds into their episodes, for videos."""
        feature = self._features.cameras[camera]
        file = (of.videos[feature.key] if feature.dtype == "video" else of).file[episodes]
        if (file == file[0]).all():
            return np.asarray(self._images_of_file(of, camera, episodes, frames, times))
        images = np.zeros(0, np.uint8)
        for number in np.unique(file):
            here = np.flatnonzero(file == number)
            its_times = None if times is None else times[here]
            found = self._images_of_file(of, camera, episodes[here], frames[here], its_times)
            if not len(images):  # allocate only after one image was found to be as large as the metadata says
                images = np.empty((len(frames), *found[0].shape), np.uint8)
            for place, image in zip(here, found, strict=True):
                images[place] = image
        return images

    def _images_of_file(
        self, of: Episodes, camera: str, episodes: np.ndarray, frames: np.ndarray, times: np.ndarray | None
    ) -> np.ndarray | list[np.ndarray]:
        """Like `_stored_images`, for episodes that are in one file."""
        feature = self._features.cameras[camera]
        if feature.dtype == "video":
            assert times is not None
            places = of.videos[feature.key]
            path = self.path / places.files[places.file[episodes[0]]]
            images = video_reader().frames(path, places.start[episodes] + times, self._tolerance)
            self._check_size(feature, path, np.array([images.shape[1:3]]))
            return images
        path = self.path / of.files[of.file[episodes[0]]]
        rows = of.row[episodes] + frames
        sizes = self._images.sizes(path, feature.key, rows)
        there = sizes.all(axis=1)  # for the others, decoding says what is wrong
        self._check_size(feature, path, sizes[there], rows[there])  # before decoding an image of unexpected size
        return self._images.read(path, feature.key, rows.tolist())

    def _look(self, of: Episodes, camera: str, episodes: np.ndarray, frames: np.ndarray, times: np.ndarray) -> None:
        """Read images, and check that all images of their episodes have the right size. Raises InputError."""
        self._stored_images(of, camera, episodes, frames, times)
        feature = self._features.cameras[camera]
        if feature.dtype == "image":
            for index in np.unique(episodes).tolist():
                path, rows = self.path / of.files[of.file[index]], np.arange(of.length[index]) + of.row[index]
                self._check_size(feature, path, self._images.sizes(path, feature.key, rows), rows)

    def _undamaged(self) -> Episodes:
        """The episodes that can be read."""
        there = [file for file in self._source.all_files() if (self.path / file).is_file()]
        keys = [feature.key for feature in self._features.cameras.values()]
        known = cache_root() / "lerobot" / "damaged" / f"{_digest(self._digest_of(there), keys, self._reading)}.json"
        return leave_out_damaged(self.path, self._info, self._features, self._source, self._look, known)

    def extras(self, index: int) -> EpisodeExtras:
        """Return what Atlas stored about an episode when it wrote the dataset; empty if somebody else wrote it."""
        if self._extras is None:
            return EpisodeExtras()
        return self._extras.episode(int(self._source.number[index]))

    def sim_states(self, index: int) -> np.ndarray | None:
        """float64 [T, D]: the simulator's states in an episode, if Atlas stored them."""
        width = self.extras(index).sim_dim
        if width is None:
            return None
        path = self.path / self._source.files[self._source.file[index]]
        states = read_sim_states(path, int(self._source.row[index]), int(self._source.length[index]), width)
        return states if self._kept is None else states[self._kept[index]]

    def _last_in_files(self) -> list[int]:
        """The last episodes of the files, or of some evenly spread ones if there are many: a wrong frame rate or number
        of frames shows at their ends."""
        places = [(self._source.file, self._source.row)]
        places += [(videos.file, videos.start) for videos in self._source.videos.values()]
        chosen: set[int] = set()
        for file, start in places:
            order = np.lexsort((start, file))
            last = order[np.flatnonzero(np.diff(file[order], append=-1))]
            chosen.update(last[np.linspace(0, len(last) - 1, min(len(last), _LOOKED_INTO)).astype(int)].tolist())
        return sorted(chosen)

    def _moving(self, index: int) -> np.ndarray:
        """An episode's frames without no-ops."""
        first = int(self._first[index])
        kept = without_noops(self.columns.action[first : first + self._source.length[index]], self.action_spec)
        if not len(kept):
            raise InputError(
                f"{self.path}: episode {self._source.number[index]} has no frame whose action does something; leave it "
                "out, or drop_noops."
            )
        return kept

    @property
    def _reading(self) -> str:
        """Describe how the numbers are read, as text: the rest of what the columns depend on."""
        features = self._features
        keys = [feature.key for feature in features.proprio]
        more = (self._source.number.tolist(),) if self._source.partial else ()
        more = more if features.source.groups is None else (*more, features.source.groups)
        more = (*more, features.rotations) if features.rotations else more
        more = (*more, self._source.task_key, self._source.tasks) if self._source.several_tasks else more
        more = (*more, "subtasks by time") if self._source.task_spans is not None else more
        return repr((FORMAT, features.source, features.action.key, keys, features.libero, features.stated, *more))

    def _digest_of(self, files: Sequence[str]) -> str:
        """Changes with the metadata, and with the names, sizes and modification times of some files."""
        digest = hashlib.sha256()
        meta = sorted(str(file.relative_to(self.path)) for file in files_below(self.path / "meta"))
        for name in [*meta, *files]:
            try:
                stat = os.stat(self.path / name)
            except OSError as error:
                raise InputError(f"{self.path / name} cannot be read: {error.strerror}.") from None
            digest.update(repr((name, stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()


class LeRobotEpisode:
    """One episode; each part is read when it is first asked for."""

    def __init__(self, dataset: LeRobotDataset, index: int) -> None:
        self._dataset, self._index = dataset, index

    @property
    def instruction(self) -> str:
        """The first frame's, if they differ."""
        tasks = self._dataset.frame_tasks(self._index)
        return self._dataset.tasks[self._dataset.task_of[self._index] if tasks is None else tasks[0]]

    def __len__(self) -> int:
        return int(self._dataset.lengths[self._index])

    @property
    def actions(self) -> np.ndarray:
        return self._dataset.columns.action[self._dataset.rows(self._index)]

    @property
    def proprio(self) -> np.ndarray:
        return self._dataset.columns.proprio[self._dataset.rows(self._index)]

    @property
    def rewards(self) -> np.ndarray | None:
        rewards = self._dataset.columns.reward
        return None if rewards is None else rewards[self._dataset.rows(self._index)]

    @property
    def success(self) -> bool | None:
        success = self._dataset.columns.success
        return None if success is None else bool(success[self._dataset.rows(self._index)].any())

    @cached_property
    def sim_states(self) -> np.ndarray | None:
        return self._dataset.sim_states(self._index)

    @property
    def init_state(self) -> np.ndarray | None:
        return self._dataset.extras(self._index).init_state

    @property
    def model_xml(self) -> str | None:
        return self._dataset.extras(self._index).model_xml

    def images(self, camera: str, frames: Sequence[int]) -> np.ndarray:
        """uint8 [n, H, W, 3], upright."""
        stored = np.asarray(frames, np.int64)
        return self._dataset.images(camera, np.full(len(stored), self._index), stored)


def _files_of(of: Episodes, feature: Feature) -> list[str]:
    """The files that hold a camera's images."""
    return of.videos[feature.key].files if feature.dtype == "video" else of.files


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
