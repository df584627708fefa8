"""Finds the episodes of a LeRobot dataset that cannot be used, so that the others can be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from atlas.data.lerobot.columns import DataFile
from atlas.data.lerobot.episodes import Episodes
from atlas.data.lerobot.features import Features
from atlas.data.lerobot.info import Info
from atlas.data.lerobot.whole import fault
from atlas.errors import InputError
from atlas.system.documents import read_json
from atlas.system.files import write_json
from atlas.system.progress import progress_bar

logger = logging.getLogger(__name__)

_SHOWN_FROM = 50  # episodes; fewer are checked too fast for a progress bar
Look = Callable[[Episodes, str, np.ndarray, np.ndarray, np.ndarray], object]


def leave_out_damaged(
    root: Path, info: Info, features: Features, episodes: Episodes, look: Look, known: Path
) -> Episodes:
    """The episodes whose numbers, first and last images can be read; each of the others is named in a warning.

    look: reads images: (all episodes, camera, episodes, frames, times in seconds in the episodes, the last three [n]);
    raises InputError.
    known: a file in the cache for the findings, which are computed once per state of the dataset.
    Raises InputError if no episode is left.
    """
    noted = _noted(known)
    if noted is None:
        noted = _damaged(root, info, features, episodes, look)
        write_json(known, {"damaged": {str(index): why for index, why in noted[0].items()}, "strays": noted[1]})
    damaged, strays = noted
    for name, rows in strays.items():
        logger.warning("Left out: %d rows of %s that belong to no episode.", rows, root / name)
    for why in dict.fromkeys(damaged.values()):
        numbers = [int(episodes.number[index]) for index, its in damaged.items() if its == why]
        named = f"episode {numbers[0]}" if len(numbers) == 1 else f"episodes {', '.join(map(str, numbers))}"
        logger.warning("Left out: %s of %s: %s", named, root, why)
    kept = np.setdiff1d(np.arange(len(episodes.length)), list(damaged))
    if not len(kept):
        raise InputError(f"{root} has no episode that is not damaged; the warnings say what is wrong.")
    return episodes.only(kept) if damaged or strays else episodes


def _noted(known: Path) -> tuple[dict[int, str], dict[str, int]] | None:
    """The earlier findings; None if there are none, or they cannot be read."""
    try:
        values = read_json(known)
        return {int(index): str(why) for index, why in values["damaged"].items()}, dict(values["strays"])
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _damaged(
    root: Path, info: Info, features: Features, episodes: Episodes, look: Look
) -> tuple[dict[int, str], dict[str, int]]:
    """Say what is wrong with which episodes, and how many rows of which files belong to no episode although all others
    are sound."""
    strays: dict[str, int] = {}
    faults = {name: why for name in dict.fromkeys(episodes.all_files()) if (why := fault(root / name)) is not None}
    found = {
        index: f"{root}/meta/episodes does not say where it is in the videos of '{key}'"
        for index, key in episodes.without_place().items()
    }
    for index in range(len(episodes.length)):
        if index in found:
            continue
        files = [episodes.files[episodes.file[index]]]
        files += [places.files[places.file[index]] for places in episodes.videos.values()]
        if broken := [name for name in files if name in faults]:
            found[index] = f"{root / broken[0]} {faults[broken[0]]}"
    title = f"Looking through {root.name}" if len(episodes.length) >= _SHOWN_FROM else None
    with progress_bar(title, len(episodes.length)) as advance:
        for number in range(len(episodes.files)):
            here = np.flatnonzero(episodes.file == number)
            whole = np.array([index for index in here if index not in found], np.int64)
            times, bad, more = _read_numbers(root, info, features, episodes, whole)
            found |= bad
            if more > 0 and not bad:
                strays[episodes.files[number]] = more
            for index, its_times in times.items():
                frames = np.unique([0, int(episodes.length[index]) - 1])
                try:
                    for camera in features.cameras:
                        look(episodes, camera, np.full(len(frames), index), frames, its_times[frames])
                except InputError as error:
                    found[index] = str(error)
            advance(len(here))
    return found, strays


def _read_numbers(
    root: Path, info: Info, features: Features, episodes: Episodes, here: np.ndarray
) -> tuple[dict[int, np.ndarray], dict[int, str], int]:
    """Read the numbers of a data file's episodes: the frames' times of those that can be read, what is wrong with the
    others, and how many rows the file has in addition to theirs."""
    if not len(here):
        return {}, {}, 0
    keys = [episodes.task_key, *features.action_keys, *(feature.key for feature in features.proprio), "timestamp"]
    try:
        file = DataFile(root / episodes.files[episodes.file[here[0]]], info, keys)
    except InputError as error:
        return {}, dict.fromkeys(here.tolist(), str(error)), 0
    return _search(file, keys, episodes, here)


def _search(
    file: DataFile, keys: Sequence[str], episodes: Episodes, here: np.ndarray
) -> tuple[dict[int, np.ndarray], dict[int, str], int]:
    """The same for a file that is read: episodes of which something is wrong are looked through by halves."""
    mine = episodes.only(here)
    each = np.argsort(mine.row)
    try:
        part = file.only(mine.rows_in_file(each))
        part.check(mine, each)
        columns = {key: part.numbers([key]) for key in keys}
    except InputError as error:
        if len(here) == 1:
            return {}, {int(here[0]): str(error)}, 0
    else:
        stamps = np.split(columns["timestamp"][:, 0].astype(np.float64), np.cumsum(mine.length[each])[:-1])
        return dict(zip(here[each].tolist(), stamps, strict=True)), {}, file.all_rows - int(mine.file_rows[0])
    half = len(here) // 2
    (times, bad, more), (other_times, other_bad, _) = (
        _search(file, keys, episodes, each) for each in (here[:half], here[half:])
    )
    return times | other_times, bad | other_bad, more
