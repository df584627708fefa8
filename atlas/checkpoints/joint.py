"""Checkpoints that all ranks write together, each its part."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from atlas.checkpoints.manager import Checkpoints, Contents
from atlas.checkpoints.retention import Retention
from atlas.checkpoints.shards import Shards
from atlas.checkpoints.state import TrainingState
from atlas.errors import InputError


class JointCheckpoints(Checkpoints):
    """The main rank has the folder and gives it its name when every rank has written its part into it.

    Every rank calls `write`, on any thread, in the same order. The other methods are the main rank's, but for `prune`,
    which does nothing elsewhere.
    """

    def __init__(self, run_dir: Path, retention: Retention | int, group: dist.ProcessGroup) -> None:
        """group: of all ranks, for these checkpoints alone; its tensors are on the CPU."""
        super().__init__(run_dir, retention)
        self._group = group
        self._is_main = dist.get_rank(group) == 0

    def write(self, contents: Contents) -> Path:
        """As `Checkpoints.write`. Raises OSError on every rank where one cannot write."""
        if not self._is_main:
            folder = _tell(None, self._group)
            if folder is None:
                raise OSError("the main process has not begun")
            _write_together(contents, folder, self._group)
            return self.path(contents.state.step)
        announced = _Announced(contents, self._group)
        try:
            return super().write(announced)
        finally:
            if not announced.told:
                _tell(None, self._group)

    def prune(self) -> None:
        if self._is_main:
            super().prune()


class _Announced:
    """The main rank's contents, whose folder is told to the others when it is there."""

    def __init__(self, contents: Contents, group: dist.ProcessGroup) -> None:
        self._contents, self._group = contents, group
        self.told = False

    @property
    def state(self) -> TrainingState:
        return self._contents.state

    @property
    def nbytes(self) -> int:
        return self._contents.nbytes

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.told = True
        _tell(folder, self._group)
        _write_together(self._contents, folder, self._group)
        try:
            Shards(folder)
        except InputError as error:
            raise OSError(f"{error} The run's folder must be on a disk that all machines share") from None


def _tell(folder: Path | None, group: dist.ProcessGroup) -> Path | None:
    """What the main rank says: the folder to write into, or None where it has none."""
    said = [folder]
    dist.broadcast_object_list(said, src=0, group=group)
    return said[0]


def _write_together(contents: Contents, folder: Path, group: dist.ProcessGroup) -> None:
    error: Exception | None = None
    try:
        contents.write(folder)
    except Exception as raised:  # first all must know
        error = raised
    found: list[tuple[bool, str] | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, None if error is None else (isinstance(error, OSError), str(error)), group=group)
    failed = {rank: each for rank, each in enumerate(found) if each is not None}
    if not failed:
        return
    what = "; ".join(f"process {rank}: {text}" for rank, (_, text) in failed.items())
    kind = OSError if all(of_disk for of_disk, _ in failed.values()) else RuntimeError
    raise kind(what) from error
