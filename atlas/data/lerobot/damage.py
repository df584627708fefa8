"""Which episodes of a LeRobot dataset cannot be used, so that the others can."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from atlas.data.lerobot.columns import DataFile
from atlas.data.lerobot.episodes import Episodes
from atlas.data.lerobot.features import Features
from atlas.data.lerobot.info import Info
from atlas.data.lerobot.whole import fault
from atlas.errors import InputError
from atlas.files import write_json
from atlas.progress import progress_bar

logger = logging.getLogger(__name__)

_SHOWN_FROM = 50  # episodes; fewer are looked at in no time
Look = Callable[[Episodes, str, np.ndarray, np.ndarray, np.ndarray], object]


def leave_out_damaged(
    root: Path, info: Info, features: Features, episodes: Episodes, look: Look, known: Path
) -> Episodes:
    """The episodes whose numbers can be read, and whose first and last images; each other one is named in a warning.

    look: reads images: (all episodes, camera, episodes, frames, times in seconds in the episodes, the last three [n]);
    raises InputError.
    known: a file of the cache for what is found, which is looked for once for a state of the dataset.
    Raises InputError where no episode is left.
    """
    if not known.is_file():
        found = _damaged(root, info, features, episodes, look)
        write_json(known, {str(index): why for index, why in found.items()})
    damaged = {int(index): why for index, why in json.loads(known.read_text(encoding="utf-8")).items()}
    for why in dict.fromkeys(damaged.values()):
        numbers = [int(episodes.number[index]) for index, its in damaged.items() if its == why]
        named = f"episode {numbers[0]}" if len(numbers) == 1 else f"episodes {', '.join(map(str, numbers))}"
        logger.warning("Left out: %s of %s: %s", named, root, why)
    kept = np.setdiff1d(np.arange(len(episodes.length)), list(damaged))
    if not len(kept):
        raise InputError(f"{root} has no episode that is not damaged; the warnings say what is wrong.")
    return episodes.only(kept) if damaged else episodes


def _damaged(root: Path, info: Info, features: Features, episodes: Episodes, look: Look) -> dict[int, str]:
    """What is wrong with which episodes."""
    faults = {name: why for name in dict.fromkeys(episodes.all_files()) if (why := fault(root / name)) is not None}
    found: dict[int, str] = {}
    for index in range(len(episodes.length)):
        files = [episodes.files[episodes.file[index]]]
        files += [places.files[places.file[index]] for places in episodes.videos.values()]
        if broken := [name for name in files if name in faults]:
            found[index] = f"{root / broken[0]} {faults[broken[0]]}"
    title = f"Looking through {root.name}" if len(episodes.length) >= _SHOWN_FROM else None
    with progress_bar(title, len(episodes.length)) as advance:
        for number in range(len(episodes.files)):
            here = np.flatnonzero(episodes.file == number)
            whole = np.array([index for index in here if index not in found], np.int64)
            times, bad = _read_numbers(root, info, features, episodes, whole)
            found |= bad
            for index, its_times in times.items():
                frames = np.unique([0, int(episodes.length[index]) - 1])
                try:
                    for camera in features.cameras:
                        look(episodes, camera, np.full(len(frames), index), frames, its_times[frames])
                except InputError as error:
                    found[index] = str(error)
            advance(len(here))
    return found


def _read_numbers(
    root: Path, info: Info, features: Features, episodes: Episodes, here: np.ndarray
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Read the numbers of episodes of one data file: the frames' times of those that can be read, what is wrong with
    the others."""
    if not len(here):
        return {}, {}
    keys = [features.action.key, *(feature.key for feature in features.proprio), "timestamp"]
    mine = episodes.only(here)
    each = np.argsort(mine.row)
    try:
        file = DataFile(root / mine.files[0], info, keys, mine.rows_in_file(each))
        file.check(mine, each)
        columns = {key: file.numbers([key]) for key in keys}
    except InputError as error:
        if len(here) == 1:
            return {}, {int(here[0]): str(error)}
        parts = [_read_numbers(root, info, features, episodes, here[i : i + 1]) for i in range(len(here))]
        return {i: t for part, _ in parts for i, t in part.items()}, {
            i: w for _, part in parts for i, w in part.items()
        }
    ends = np.cumsum(mine.length[each])[:-1]
    times = np.split(columns["timestamp"][:, 0].astype(np.float64), ends)
    return dict(zip(here[each].tolist(), times, strict=True)), {}
