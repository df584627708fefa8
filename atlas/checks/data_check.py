"""`atlas data check`: all checks of a dataset in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from atlas.checks.context import CheckContext
from atlas.checks.finding import CheckId, Finding
from atlas.checks.language import check_language
from atlas.checks.numbers import check_actions, check_rotations
from atlas.checks.recording_agreement import check_gripper, check_lag, check_scale
from atlas.checks.replay import check_replay
from atlas.checks.split_check import check_split
from atlas.checks.stats import check_stats
from atlas.checks.video_check import check_video
from atlas.checks.view_page import check_view
from atlas.config import Config, DataConfig
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.data.hdf5.reader import HDF5_SUFFIXES
from atlas.data.sampling.split import split_dataset
from atlas.environments.catalog import make_environment
from atlas.environments.rendering import software_renderer, tell_of_software
from atlas.errors import InputError
from atlas.system.paths import files_below
from atlas.system.progress import progress_bar

Check = Callable[[CheckContext], Iterator[Finding]]

# Each knows the findings of those before it. The last two need the world.
CHECKS: tuple[tuple[CheckId, Check], ...] = (
    ("video", check_video),
    ("language", check_language),
    ("actions", check_actions),
    ("actions", check_rotations),
    ("gripper", check_gripper),
    ("lag", check_lag),
    ("scale", check_scale),
    ("split", check_split),
    ("stats", check_stats),
    ("replay", check_replay),
    ("view", check_view),
)


def run_checks(
    context: CheckContext, checks: Sequence[tuple[CheckId, Check]] = CHECKS, title: str | None = None
) -> list[Finding]:
    """The findings, in the order of the checks; they are also in `context.found`."""
    with progress_bar(title, len(checks)) as advance:
        for name, check in checks:
            try:
                for finding in check(context):
                    context.found.append(finding)
            except InputError as error:  # for a file that is only read now
                if context.has_errors("video"):
                    context.found.append(Finding(name, "info", f"not looked at to the end: {error}"))
                else:
                    context.found.append(
                        Finding("video", "error", str(error), "Repair what is named, or leave it out.")
                    )
            advance(1)
            if name == "actions" and context.not_finite:
                break  # nothing can be computed from such numbers
    return context.found


def check_data(
    config: Config, env: str | None = None, pictures: Path | None = None, replayed: int = 10, title: str | None = None
) -> list[Finding]:
    """All checks of the dataset that a config's `data` section names, read and split as in training.

    env: the world in which recordings are replayed and rendered; None: the one that the dataset was recorded in, if
    Atlas has it; `none`: none. pictures: a folder for evidence. title: of a progress bar. Raises InputError if there is
    no readable dataset, or the world cannot be started.
    """
    dataset, damaged = open_what_can_be(config.data)
    if dataset is None:
        return damaged
    cameras = _cameras(config.data, dataset)
    train, val = split_dataset(dataset, config.data.val_fraction, config.seed)
    context = CheckContext(dataset, cameras, train, val, None, pictures, replayed, damaged, config.model.processor)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        name = env or dataset.environment
        if name not in (None, "none"):
            try:
                context.environment = stack.enter_context(closing(make_environment(name, _camera_size(context))))
            except InputError as error:
                if env is not None:
                    raise
                message = f"nothing was replayed or rendered: {error}"
                context.found.append(Finding("replay", "info", message, None, {"environment": name}))
        found = run_checks(context, title=title)
        if context.environment is not None:
            tell_of_software(context.environment.spec.name, software_renderer())
        return found


def open_what_can_be(config: DataConfig) -> tuple[EpisodeDataset | None, list[Finding]]:
    """The dataset without what is damaged in it, and findings about that; None if nothing in it can be read.

    Raises InputError if there is no dataset, or its description is damaged.
    """
    try:
        return _opened(config), []
    except InputError as error:
        damaged = [_damage(fault) for fault in _faults(config, error)]
        try:
            dataset = _opened(config.model_copy(update={"skip_damaged": True}))
        except InputError:
            if not isinstance(error, _Unreadable):
                raise error from None
            return None, damaged
        return dataset, damaged


class _Unreadable(InputError):
    """A dataset can be opened, but its numbers cannot be read."""


def _opened(config: DataConfig) -> EpisodeDataset:
    """Opened without looking through its files, which the checks do."""
    source = config.sources[0]
    orientation = None if source.orientation == "auto" else source.orientation
    dataset = open_dataset(
        source.path,
        orientation,
        source.drop_noops,
        source.features,
        config.cameras,
        source.instruction,
        config.skip_damaged,
    )
    try:
        dataset.numbers()
    except InputError as error:
        raise _Unreadable(str(error)) from error
    return dataset


def _faults(config: DataConfig, error: InputError) -> list[str]:
    """Return the error of each file in a folder whose files are independent datasets; otherwise the one error."""
    folder = Path(config.sources[0].path).expanduser()
    files = files_below(folder, HDF5_SUFFIXES) if folder.is_dir() else []
    found = []
    for file in files:
        source = config.sources[0].model_copy(update={"path": str(file)})
        try:
            _opened(config.model_copy(update={"path": source.path, "datasets": None}))
        except InputError as fault:
            found.append(str(fault))
    return found or [str(error)]


def _damage(fault: str) -> Finding:
    check: CheckId = "actions" if "not finite" in fault else "video"
    fix = "Repair it or download it again, or train with data.skip_damaged=true, which leaves it out."
    return Finding(check, "error", fault, fix, {"damaged": fault})


def _cameras(config: DataConfig, dataset: EpisodeDataset) -> list[str]:
    unknown = [camera for camera in config.cameras or [] if camera not in dataset.cameras]
    if unknown:
        raise InputError(f"data.cameras names {unknown}, but {dataset.path} has the cameras {dataset.cameras}.")
    return list(config.cameras or dataset.cameras)


def _camera_size(context: CheckContext) -> int:
    """The size that evaluation renders at: that of the recorded pictures."""
    return min(min(context.dataset.image_size(camera)) for camera in context.cameras)
