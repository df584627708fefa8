"""Checkpoints of a run: complete or absent, with links to the latest and the best."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Protocol

from atlas.errors import InputError
from atlas.files import replace_link, sync, sync_tree
from atlas.registry.files import link_or_copy
from atlas.registry.local import POLICY_FILES
from atlas.registry.manifest import MANIFEST, compare_files, read_manifest, require, seal
from atlas.training.checkpoints.retention import Retention
from atlas.training.checkpoints.state import STATE, TrainingState, load_state

logger = logging.getLogger(__name__)

_NAME, _PARTIAL, _STANDIN = re.compile(r"\.?step_(\d{8,})(\.standin)?"), ".partial", ".standin"
_LINKS = ("latest", "best")
_NEEDED = (STATE, *(f"policy/{name}" for name in POLICY_FILES))
_OLDER = "trainer/optimizer.pt"  # only versions of Atlas that wrote no manifest wrote this


class Contents(Protocol):
    """What a checkpoint is made of, such as a `Snapshot`."""

    @property
    def state(self) -> TrainingState: ...

    @property
    def nbytes(self) -> int: ...

    def write(self, folder: Path) -> None:
        """Write `policy/` and `trainer/` into a folder, without waiting for the disk. Raises OSError."""


class Checkpoints:
    """`<run_dir>/checkpoints/step_00001000/{policy/, trainer/}` and the links `latest` and `best`.

    A process or a machine may be stopped at any moment: a folder of this name, and what a link names, is a complete
    checkpoint. Only one process writes, one checkpoint at a time.
    """

    def __init__(self, run_dir: Path, retention: Retention | int) -> None:
        """retention: a number is the last_n of one."""
        self.root = run_dir / "checkpoints"
        self._retention = Retention(retention) if isinstance(retention, int) else retention

    def path(self, step: int) -> Path:
        return _folder(self.root, step)

    def steps(self) -> list[int]:
        """The steps that are saved, ascending."""
        return saved_steps(self.root)

    def write(self, contents: Contents) -> Path:
        """Write a checkpoint and point `latest` at it, and `best` at the one that its state calls the best.

        One of the same step is replaced. Raises OSError, such as for a full disk; all is as it was before then.
        """
        self._make_root()
        self._tidy()
        final = self.path(contents.state.step)
        partial = self._hidden(final, _PARTIAL)
        try:
            contents.write(partial)
            seal(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._put_in_place(partial, final)
        self._link(contents.state)
        return final

    def prune(self) -> None:
        """Remove the checkpoints that are not to be kept. Raises OSError."""
        latest = self._linked("latest")
        if latest is None:
            return
        values = {step: self._value(step) for step in self.steps()}
        linked = [step for name in _LINKS if (step := self._linked(name)) is not None]
        for step in values.keys() - self._retention.kept(values, latest, linked):
            self._remove(self.path(step))

    def adopt(self, checkpoint: Path) -> Path:
        """Make a checkpoint the one that the run goes on from: `latest` names it, and `best` the best one up to it.

        One from elsewhere is copied to where the run keeps its own, unless it is there undamaged. Returns where it is
        then. Raises InputError for one that is damaged, OSError.
        """
        state = load_state(checkpoint)
        final = self.path(state.step)
        self._make_root()
        self._settle()
        if checkpoint.resolve() != final.resolve() and not _is_sound(final):
            partial = self._hidden(final, _PARTIAL)
            shutil.rmtree(partial, ignore_errors=True)
            for part in ("policy", "trainer"):
                shutil.copytree(checkpoint / part, partial / part)
            sync_tree(partial)
            verify(partial)
            self._put_in_place(partial, final)
        self._link(state)
        return final

    # ---- links -------------------------------------------------------------------------------------------

    def _link(self, state: TrainingState) -> None:
        self._point("latest", self.path(state.step))
        if state.best_step is not None and self.path(state.best_step).exists():
            self._point("best", self.path(state.best_step))

    def _point(self, name: str, folder: Path) -> None:
        if self._target(name) != folder.name:
            replace_link(self.root / name, folder.name)
            sync(self.root)

    def _target(self, name: str) -> str | None:
        """What a link holds, be it there or not."""
        link = self.root / name
        return os.readlink(link) if link.is_symlink() else None

    def _linked(self, name: str) -> int | None:
        """The step that a link names."""
        target = self._target(name)
        return _step_of(target) if target is not None else None

    def _value(self, step: int) -> float | None:
        """A checkpoint's value of the metric by which the best are kept; None for one without, or damaged."""
        try:
            state = load_state(self.path(step))
        except InputError:
            return None
        return state.value if state.metric == self._retention.metric else None

    # ---- folders -----------------------------------------------------------------------------------------

    def _make_root(self) -> None:
        if not self.root.exists():
            self.root.mkdir(parents=True)
            sync(self.root.parent)

    def _hidden(self, final: Path, suffix: str) -> Path:
        return self.root / f".{final.name}{suffix}"

    def _put_in_place(self, complete: Path, final: Path) -> None:
        """Give a complete folder its name. Where another has it, links never name half of one or none.

        Meanwhile they name a stand-in: another folder with the same files.
        """
        if final.exists():
            standin = self._hidden(final, _STANDIN)
            _link_tree(complete, standin)
            for name in _LINKS:
                if self._target(name) == final.name:
                    self._point(name, standin)
            self._remove(final)
        os.replace(complete, final)
        sync(self.root)
        self._settle()

    def _settle(self) -> None:
        """End with stand-ins: the links that name one name the folder it stands for, which is made from it if lost."""
        for standin in self.root.glob(f".step_*{_STANDIN}"):
            final = self.root / standin.name.removeprefix(".").removesuffix(_STANDIN)
            naming = [name for name in _LINKS if self._target(name) == standin.name]
            if naming and not _is_twin(final, standin):
                partial = self._hidden(final, _PARTIAL)
                shutil.rmtree(partial, ignore_errors=True)
                _link_tree(standin, partial)
                if final.exists():
                    self._remove(final)
                os.replace(partial, final)
                sync(self.root)
            for name in naming:
                self._point(name, final)
            shutil.rmtree(standin)

    def _remove(self, folder: Path) -> None:
        """Renamed first, so that what has a checkpoint's name is a whole one."""
        gone = self._hidden(folder, f".removed{_PARTIAL}")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(folder, gone)
        shutil.rmtree(gone)

    def _tidy(self) -> None:
        """Remove what a process left that was killed."""
        self._settle()
        for folder in self.root.glob(f".step_*{_PARTIAL}"):
            shutil.rmtree(folder, ignore_errors=True)
        for name in _LINKS:
            for link in self.root.glob(f".{name}.*{_PARTIAL}"):
                link.unlink(missing_ok=True)


# ---- finding one -----------------------------------------------------------------------------------------


def saved_steps(root: Path) -> list[int]:
    """The steps of the checkpoints in a folder `checkpoints`, ascending."""
    found = [_step_of(folder.name) for folder in root.glob("step_*") if folder.is_dir()]
    return sorted(step for step in found if step is not None)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the latest of the run it is. It may be damaged: see `verify`.

    Where a run's `latest` leads nowhere, it is the one of the largest step. Raises InputError where there is none.
    """
    for candidate in (path, path / "checkpoints" / "latest", path / "latest"):
        found = candidate.resolve()
        if (found / STATE).exists() or (found.is_dir() and _step_of(found.name) is not None):
            return found
    for root in (path / "checkpoints", path, *([path.parent] if path.is_symlink() else [])):
        if steps := saved_steps(root):
            return _folder(root, steps[-1]).resolve()
    raise InputError(f"There is no checkpoint to resume from at {path}: no {STATE} was found there.")


def find_undamaged(run_dir: Path) -> Path:
    """A run's latest checkpoint, or, where that is damaged, the one before it, with a warning that says so.

    Raises InputError where there is none, and where all are damaged.
    """
    latest = find_checkpoint(run_dir)
    root, now = latest.parent, _step_of(latest.name)
    others = [step for step in reversed(saved_steps(root)) if step != now]
    # Those after the latest are from before training went back to an earlier one.
    others.sort(key=lambda step: now is not None and step > now)
    problems = []
    for checkpoint in (latest, *(_folder(root, step) for step in others)):
        try:
            verify(checkpoint)
        except InputError as error:
            problems.append(str(error))
            continue
        if problems:
            logger.warning("%s Training goes on from %s.", " ".join(problems), checkpoint)
        return checkpoint
    raise InputError(f"Every checkpoint in {root} is damaged. {' '.join(problems)}")


def verify(checkpoint: Path) -> None:
    """Compare every file of a checkpoint with its manifest. Raises InputError that names the file that is damaged.

    Files that the manifest does not name are no damage. A checkpoint from before there were manifests has none: of it
    only the names of its files are looked at.
    """
    if (checkpoint / MANIFEST).exists() or not (checkpoint / _OLDER).exists():
        compare_files(checkpoint, read_manifest(checkpoint, _NEEDED))
        return
    for name in (*_NEEDED, "trainer/random.pt"):
        require(checkpoint / name)
    load_state(checkpoint)


def _folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def _step_of(name: str) -> int | None:
    """The step that the name of a checkpoint's folder, or of a stand-in, tells; None for other names."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def _is_sound(checkpoint: Path) -> bool:
    try:
        verify(checkpoint)
    except InputError:
        return False
    return True


def _is_twin(checkpoint: Path, other: Path) -> bool:
    """Whether both were written with the same contents."""
    files = (checkpoint / MANIFEST, other / MANIFEST)
    return all(file.exists() for file in files) and files[0].read_bytes() == files[1].read_bytes()


def _link_tree(source: Path, target: Path) -> None:
    """The same files in another folder, which takes no space where the file system has hard links."""
    shutil.copytree(source, target, copy_function=lambda file, name: link_or_copy(Path(file), Path(name)))
    sync_tree(target)
