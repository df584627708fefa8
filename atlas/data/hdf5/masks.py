"""robomimic's own split: the lists of demos that a file keeps beside them, `mask/train` and `mask/valid`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import h5py

from atlas.data.episode import Side
from atlas.data.hdf5.opening import find
from atlas.data.hdf5.texts import texts_in
from atlas.errors import InputError

logger = logging.getLogger(__name__)

_TRAIN, _VALID = "train", "valid"


def sides_of(file: h5py.File, names: Sequence[str], path: Path) -> dict[str, Side]:
    """The demos that are used, in the order of `names`, and the side of the split that the file assigns each to.

    If one of the two lists is missing, it is everything that is not in the other. Demos that are in neither of two
    lists are left out with a warning. Raises InputError if a demo is in both.
    """
    lists = _lists(file, path)
    if not lists:
        return dict.fromkeys(names, Side.UNSAID)
    train = lists.get(_TRAIN, set(names) - lists.get(_VALID, set()))
    valid = lists.get(_VALID, set(names) - train)
    if both := sorted(train & valid):
        raise InputError(
            f"{path}: {len(both)} demos are both in mask/{_TRAIN} and in mask/{_VALID}, such as {both[0]}; validation "
            "on what was trained on says nothing. Correct the lists, or remove them from the file."
        )
    sides = {name: Side.VALIDATION if name in valid else Side.TRAINING for name in names if name in train | valid}
    if len(set(sides.values())) < 2:
        counts = ", ".join(f"mask/{name} names {len(demos & set(names))}" for name, demos in lists.items())
        logger.warning("%s: %s of %d demos, which is not a split; Atlas splits them itself.", path, counts, len(names))
        return dict.fromkeys(names, Side.UNSAID)
    validated = sum(side == Side.VALIDATION for side in sides.values())
    logger.info(
        "%s: split as its masks say, %d demos for training and %d for validation.",
        path,
        len(sides) - validated,
        validated,
    )
    if len(sides) < len(names):
        logger.warning(
            "%s: %d of %d demos are neither in mask/%s nor in mask/%s, and are left out.",
            path,
            len(names) - len(sides),
            len(names),
            _TRAIN,
            _VALID,
        )
    return sides


def _lists(file: h5py.File, path: Path) -> dict[str, set[str]]:
    """The lists that the file has, of the two."""
    found = {name: find(file, f"mask/{name}", str(path)) for name in (_TRAIN, _VALID)}
    return {name: _names(each, f"{path}: mask/{name}") for name, each in found.items() if each is not None}


def _names(stored: h5py.Group | h5py.Dataset, where: str) -> set[str]:
    if not isinstance(stored, h5py.Dataset):
        raise InputError(f"{where} is a group, but robomimic has a list of demo names there.")
    return set(texts_in(stored, where))
