"""Assigns the data's cameras to a published policy's slots by name, and warns of cameras new to the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atlas.errors import InputError, did_you_mean

logger = logging.getLogger(__name__)

EMPTY_CAMERA = "empty_camera_"  # LeRobot's names for slots that never have a camera


@dataclass(frozen=True)
class CameraSlots:
    """A policy's image inputs, in order: first those with one of the data's cameras, then those without a camera."""

    present: tuple[tuple[str, int], ...]  # (the policy's name, the index of the data's camera)
    absent: tuple[str, ...]  # the policy's names

    @property
    def views(self) -> list[int]:
        """The index, among the data's cameras, of each present slot's camera."""
        return [view for _, view in self.present]


def assign_cameras(
    slots: Sequence[str],
    cameras: Sequence[str],
    mapping: Mapping[str, str] | None,
    renamed: Mapping[str, str] | None = None,
    most_absent: int | None = None,
    called: str = "the weights",
    say: bool = True,
) -> CameraSlots:
    """The policy's slots with the data's cameras in them, present ones first, in the policy's order.

    slots: the policy's names in its order. cameras: the data's, all of which are used. mapping: {policy's: data's}, the
    user's model.cameras; None: cameras go to the slots of the same name (`renamed`: {another name of the data's camera:
    policy's}), and the others take the free slots in order, with a warning if `say`. most_absent: how many slots
    without a camera are kept. Raises InputError for a mapping with an unknown name, or without one of the cameras.
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
                taken[_place_for(camera, free, called, say)] = view
    order = [*slots, *(slot for slot in taken if slot not in slots)]
    present = tuple((slot, taken[slot]) for slot in order if slot in taken)
    absent = tuple(slot for slot in slots if slot not in taken)
    return CameraSlots(present, absent if most_absent is None else absent[:most_absent])


def _mapped(slots: Sequence[str], cameras: Sequence[str], mapping: Mapping[str, str]) -> dict[str, int]:
    for slot, camera in mapping.items():
        if slot not in slots:
            near = did_you_mean(slot, list(slots))
            raise InputError(
                f"model.cameras names '{slot}', which is not a camera of the weights.{near} They have {list(slots)}."
            )
        if camera not in cameras:
            near = did_you_mean(camera, list(cameras))
            raise InputError(f"model.cameras: '{camera}' is not a camera of the data.{near} It has {list(cameras)}.")
    views = [cameras.index(camera) for camera in mapping.values()]
    unused = [camera for view, camera in enumerate(cameras) if view not in views]
    if unused or len(set(views)) < len(views):
        what = f"leaves out {unused}" if unused else "names one camera twice"
        raise InputError(
            f"model.cameras {what}; name each camera of the data once, or choose the cameras in data.cameras."
        )
    return dict(zip(mapping, views, strict=True))


def _place_for(camera: str, free: list[str], called: str, say: bool) -> str:
    """A free slot for a camera whose name no slot has, or a new slot; logs a warning for either if `say`."""
    slot = free.pop(0) if free else camera
    if say and slot != camera:
        logger.warning(
            "%s has no camera '%s', which takes the place of '%s'. Set model.cameras to choose.",
            called,
            camera,
            slot,
        )
    elif say:
        logger.warning("%s was trained with fewer cameras, and has never seen '%s'.", called, camera)
    return slot
