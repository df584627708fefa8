"""Which camera of the data goes where a published policy has one: by name, and said where it is new to the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atlas.errors import InputError, did_you_mean

logger = logging.getLogger(__name__)

EMPTY_CAMERA = "empty_camera_"  # LeRobot's names for slots that never have a camera


@dataclass(frozen=True)
class CameraSlots:
    """The pictures that a policy is given, in order: those of the data's cameras, then so many that stand for none."""

    present: tuple[tuple[str, int], ...]  # (the policy's name, which of the data's cameras)
    absent: tuple[str, ...]  # the policy's names

    @property
    def views(self) -> list[int]:
        """Of each present slot the place of its camera among the data's."""
        return [view for _, view in self.present]


def assign_cameras(
    slots: Sequence[str],
    cameras: Sequence[str],
    mapping: Mapping[str, str] | None,
    renamed: Mapping[str, str] | None = None,
    most_absent: int | None = None,
    called: str = "the weights",
) -> CameraSlots:
    """The policy's slots with the data's cameras in them, present ones first in the policy's order.

    slots: the policy's names in its order. cameras: the data's, all of which are used. mapping: {policy's: data's}, as
    the user says it in model.cameras; None: same names (`renamed`: {another name of the data's: policy's}), and cameras
    of other names take the free slots in order, which is said. most_absent: how many slots without a camera are kept.
    Raises InputError for a mapping that names nothing.
    """
    free = [slot for slot in slots if not slot.startswith(EMPTY_CAMERA)]
    if mapping is not None:
        taken = _mapped(slots, cameras, mapping)
        free = [slot for slot in free if slot not in taken]
    else:
        taken = {}
        for view, camera in enumerate(cameras):
            slot = camera if camera in free else (renamed or {}).get(camera)
            if slot in free:
                taken[slot] = view
                free.remove(slot)
        for view, camera in enumerate(cameras):
            if view not in taken.values():
                taken[_place_for(camera, free, called)] = view
    order = [*slots, *(slot for slot in taken if slot not in slots)]
    present = tuple((slot, taken[slot]) for slot in order if slot in taken)
    absent = tuple(slot for slot in slots if slot not in taken)
    return CameraSlots(present, absent if most_absent is None else absent[:most_absent])


def _mapped(slots: Sequence[str], cameras: Sequence[str], mapping: Mapping[str, str]) -> dict[str, int]:
    for slot, camera in mapping.items():
        if slot not in slots:
            near = did_you_mean(slot, list(slots))
            raise InputError(
                f"model.cameras names '{slot}', which is no camera of the weights.{near} They have {list(slots)}."
            )
        if camera not in cameras:
            near = did_you_mean(camera, list(cameras))
            raise InputError(f"model.cameras: '{camera}' is no camera of the data.{near} It has {list(cameras)}.")
    views = [cameras.index(camera) for camera in mapping.values()]
    unused = [camera for view, camera in enumerate(cameras) if view not in views]
    if unused or len(set(views)) < len(views):
        what = f"leaves out {unused}" if unused else "names one camera twice"
        raise InputError(
            f"model.cameras {what}; name each camera of the data once, or say in data.cameras which are used."
        )
    return dict(zip(mapping, views, strict=True))


def _place_for(camera: str, free: list[str], called: str) -> str:
    """A free slot for a camera whose name is none of the slots', or a new one; both are said."""
    if free:
        slot = free.pop(0)
        logger.warning(
            "The camera '%s' is none that %s know by name; it is given to them as '%s'. Say it with model.cameras.",
            camera,
            called,
            slot,
        )
        return slot
    logger.warning("The camera '%s' is one more than %s were trained with.", camera, called)
    return camera
