"""The checkpoints in a run's folder: complete or absent, linked, kept or removed, found and verified."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atlas.checkpoints.contents import STATE, Contents, TrainingState, load_state
from atlas.errors import InputError
from atlas.registry.local_policy import POLICY_FILES
from atlas.system.file_store import link_or_copy
from atlas.system.files import PARTIAL, follow, link_target, make_link, partial_folder, partial_name, sync, sync_tree
from atlas.system.locks import is_abandoned, writing
from atlas.system.manifest import MANIFEST, compare_files, read_manifest, require, seal

logger = logging.getLogger(__name__)

_NAME, _STANDIN = re.compile(r"\.?step_(\d{8,})(\.standin)?"), ".standin"
_LINKS = ("latest", "best")
_NEEDED = (STATE, *(f"policy/{name}" for name in POLICY_FILES))
_OLDER = "trainer/optimizer.pt"  # only versions of Atlas that wrote no manifest wrote this


@dataclass(frozen=True)
class Retention:
    """The config section `checkpoint`, and the metric by which a checkpoint is better than another."""

    last_n: int
    best_n: int = 1
    every_n_steps: int | None = None
    metric: str | None = None
    larger_is_better: bool = False

    def kept(self, values: Mapping[int, float | None], now: int, linked: Collection[int]) -> set[int]:
        """The steps to keep, of those that are saved.

        values: {step saved: its value of the metric, or None}. now: the step saved last. linked: the steps that links
        name, which are always kept. So are steps after `now`: training went back to before them, and does not touch
        them until it has passed them again.
        """
        reached = sorted(step for step in values if step <= now)
        kept = {step for step in values if step > now or step in linked}
        kept.update(reached[-self.last_n :])
        if self.every_n_steps is not None:
            kept.update(step for step in reached if step % self.every_n_steps == 0)
        sign = 1 if self.larger_is_better else -1
        # Of equal ones the later, as when the best is chosen.
        ranked = sorted(
            (sign * value, step) for step in reached if (value := values[step]) is not None and math.isfinite(value)
        )
        kept.update(step for _, step in ranked[-self.best_n :])
        return kept


class Checkpoints:
    """`<run_dir>/checkpoints/step_00001000/{policy/, trainer/}` and the links `latest` and `best`.

    A process or a machine may be stopped at any moment: a folder with this name, and what a link names, is always a
    complete checkpoint. Only one process writes, one checkpoint at a time.
    """

    def __init__(self, run_dir: Path, retention: Retention | int) -> None:
        """retention: a number is short for a Retention with that last_n."""
        self.root = run_dir / "checkpoints"
        self._retention = Retention(retention) if isinstance(retention, int) else retention

    def path(self, step: int) -> Path:
        return _folder(self.root, step)

    def steps(self) -> list[int]:
        """The saved steps, ascending."""
        return saved_steps(self.root)

    def write(self, contents: Contents) -> Path:
        """Write a checkpoint and point `latest` at it, and `best` at the one that its state calls the best.

        A checkpoint of the same step is replaced. Raises OSError, for example if the disk is full; nothing has changed
        then.
        """
        self._make_root()
        self._tidy()
        final = self.path(contents.state.step)
        with _partial(final) as folder:
            contents.write(folder)
            seal(folder)
            self._put_in_place(folder, final)
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
        """Make a checkpoint the one that the run resumes from: `latest` names it, and `best` the best one up to it.

        One from elsewhere is copied into the run's folder, unless it is there undamaged. Returns where it is then.
        Raises InputError if it is damaged, OSError.
        """
        state = load_state(checkpoint)
        final = self.path(state.step)
        self._make_root()
        self._settle()
        # A checkpoint that lay in a link's place has its own name by now.
        if checkpoint.exists() and checkpoint.resolve() != final.resolve() and not _is_sound(final):
            with _partial(final) as folder:
                for part in ("policy", "trainer"):
                    shutil.copytree(checkpoint / part, folder / part)
                sync_tree(folder)
                verify(folder)
                self._put_in_place(folder, final)
        self._link(state)
        return final

    # ---- links -------------------------------------------------------------------------------------------

    def _link(self, state: TrainingState) -> None:
        self._point("latest", self.path(state.step))
        if state.best_step is not None and self.path(state.best_step).exists():
            self._point("best", self.path(state.best_step))

    def _point(self, name: str, folder: Path) -> None:
        if self._target(name) != folder.name:
            link = self.root / name
            with _partial(link) as made:
                make_link(made / name, folder.name)
                os.replace(made / name, link)
            sync(self.root)

    def _target(self, name: str) -> str | None:
        """The target of a link, whether or not it exists."""
        return link_target(self.root / name)

    def _linked(self, name: str) -> int | None:
        """The step that a link names."""
        target = self._target(name)
        return _step_of(target) if target is not None else None

    def _value(self, step: int) -> float | None:
        """A checkpoint's value of the metric that decides which are kept; None if it has none, or is damaged."""
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

    def _put_in_place(self, complete: Path, final: Path) -> None:
        """Give a complete folder its final name. If another folder has that name, links never lead to a partial one.

        Meanwhile they lead to a stand-in: another folder with the same files.
        """
        if final.exists():
            standin = self.root / f".{final.name}{_STANDIN}"
            _link_tree(complete, standin)
            for name in _LINKS:
                if self._target(name) == final.name:
                    self._point(name, standin)
            self._remove(final)
        os.replace(complete, final)
        sync(self.root)
        self._settle()

    def _settle(self) -> None:
        """Remove stand-ins: links to one lead to the folder it stands for, which is restored from it if lost. Then do
        the same for folders in the place of links."""
        for name in _LINKS:
            self._unfold(self.root / name)
        for standin in self.root.glob(f".step_*{_STANDIN}"):
            final = self.root / standin.name.removeprefix(".").removesuffix(_STANDIN)
            naming = [name for name in _LINKS if self._target(name) == standin.name]
            if naming and not _is_twin(final, standin):
                with _partial(final) as folder:
                    _link_tree(standin, folder)
                    if final.exists():
                        self._remove(final)
                    os.replace(folder, final)
                sync(self.root)
            for name in naming:
                self._point(name, final)
            shutil.rmtree(standin)

    def _unfold(self, link: Path) -> None:
        """Programs that copy what links lead to (`scp -r`, `cp -L`) leave a folder in a link's place: rename it to the
        checkpoint that it is a copy of, unless that exists too."""
        if link.is_symlink() or not link.is_dir():
            return
        try:
            final = self.path(load_state(link).step)
        except InputError as error:
            aside = partial_name(link).with_suffix(".damaged")
            logger.warning("%s lies where a link should be; it is now called %s.", str(error).rstrip("."), aside.name)
            os.replace(link, aside)
            return
        if final.exists() and _is_sound(link) and not _is_sound(final):
            self._remove(final)
        if final.exists():
            self._remove(link)
        else:
            os.replace(link, final)
        self._point(link.name, final)

    def _remove(self, folder: Path) -> None:
        """Rename it first, so that whatever has a checkpoint's name is complete."""
        gone = partial_name(folder)
        os.replace(folder, gone)
        with writing(gone):
            shutil.rmtree(gone)

    def _tidy(self) -> None:
        """Remove what a killed process left, but nothing that another one is writing."""
        self._settle()
        for folder in self.root.glob(f".*{PARTIAL}"):
            if is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _partial(final: Path) -> Iterator[Path]:
    """A folder to fill and rename, which other processes do not tidy away."""
    with partial_folder(final) as folder, writing(folder):
        yield folder


# ---- finding one -----------------------------------------------------------------------------------------


def saved_steps(root: Path) -> list[int]:
    """The steps of the checkpoints in a `checkpoints` folder, ascending."""
    found = [_step_of(folder.name) for folder in root.glob("step_*") if folder.is_dir()]
    return sorted(step for step in found if step is not None)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the latest of the run it is. It may be damaged: see `verify`.

    If a run's `latest` leads nowhere, it is the one with the largest step. Raises InputError if there is none.
    """
    path = path.expanduser()
    for candidate in (path, path / "checkpoints" / "latest", path / "latest"):
        found = follow(candidate).resolve()
        if (found / STATE).exists() or (found.is_dir() and _step_of(found.name) is not None):
            return found
    for root in (path / "checkpoints", path, *([path.parent] if link_target(path) is not None else [])):
        if steps := saved_steps(root):
            return _folder(root, steps[-1]).resolve()
    raise InputError(f"There is no checkpoint to resume from at {path}: no {STATE} was found there.")


def find_undamaged(run_dir: Path) -> Path:
    """A run's latest checkpoint or, if that is damaged, the one before it, with a warning that says so.

    Raises InputError if there is none, and if all are damaged.
    """
    latest = find_checkpoint(run_dir)
    root, now = latest.parent, _step_of(latest.name)
    others = [step for step in reversed(saved_steps(root)) if step != now]
    # Checkpoints after the latest are from before training went back to an earlier one.
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
    """Compare every file of a checkpoint with its manifest. Raises InputError that names the damaged file.

    Files that the manifest does not name are ignored. A checkpoint from before there were manifests has none: only the
    names of its files are checked.
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
    """The step in the name of a checkpoint's folder, or of a stand-in; None for other names."""
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
    """The same files in another folder, which takes no space if the file system has hard links."""
    shutil.copytree(
        source, target, copy_function=lambda file, name: link_or_copy(Path(file), Path(name)), dirs_exist_ok=True
    )
    sync_tree(target)
