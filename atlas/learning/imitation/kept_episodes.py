"""A dataset that grows while episodes are played: each is written when it ends, completely or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from atlas.data.convert import Conversion
from atlas.data.episode import RecordedEpisode
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.data.recorded_parts import PARTS, RecordedParts, numbers_of_parts, write_part
from atlas.environments.catalog import environment_spec
from atlas.rollout.recording import is_liberos, move_as_lerobot

_SMALLEST_FILMED = 64  # pixels per side; the usual codec takes no smaller images


class KeptEpisodes:
    """Episodes in a folder, by their numbers. Where the world has LIBERO's actions and proprio, each is a file in
    LIBERO's layout; elsewhere `finish` makes one dataset of them all, in LeRobot's format."""

    def __init__(self, folder: Path, env: str, learned_by: str) -> None:
        """learned_by: the algorithm, which the files name."""
        self.folder, self._env = folder, env
        self._spec = environment_spec(env)
        self.as_libero = is_liberos(self._spec)
        self._about = {"env_name": env, "type": 1, "env_kwargs": {"learned_by": learned_by}}

    def take(self, number: int, episode: RecordedEpisode) -> None:
        """Write an episode; it replaces one with the same number."""
        if self.as_libero:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"episode_{number:06d}.hdf5"
            write_libero_file(file, episode.instruction, [episode], self._about)
            return
        parts = self.folder / PARTS
        parts.mkdir(parents=True, exist_ok=True)
        write_part(parts, number, episode)

    def finish(self) -> None:
        """Turn episodes that are not in LIBERO's layout into a dataset."""
        parts = self.folder / PARTS
        if numbers := numbers_of_parts(parts):
            recorded = RecordedParts(parts, numbers, self._spec.action_spec, self._env)
            small = any(min(recorded.image_size(camera)) < _SMALLEST_FILMED for camera in recorded.cameras)
            move_as_lerobot(recorded, self.folder, Conversion("lerobot", "png" if small else None), None)
            shutil.rmtree(parts)
