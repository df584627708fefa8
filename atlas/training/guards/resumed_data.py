"""Whether a resumed run has the data that it began with, as its policy's processor knows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from atlas.config import Config
from atlas.data.inputs import TrainingInputs, summarise_inputs
from atlas.data.mixture import sources_of
from atlas.data.sampling.kept_split import KeptSplit, episode_identities
from atlas.data.training_data import TrainingData
from atlas.errors import InputError
from atlas.policies.processor import PolicyProcessor

_OTHER_IMAGES = (
    3.0  # levels of 255 between two mean images; for the same images with different decoders it is less than 1
)


def check_resumed(checkpoint: Path, config: Config, data: TrainingData, kept: KeptSplit | None) -> None:
    """Raises InputError that names what differs between the data and what the checkpoint was trained on.

    kept: the checkpoint's split; None in older ones, which do not store it.
    """
    processor = PolicyProcessor.load(checkpoint / "policy" / "processor.json")
    differing = list(_differing(processor, data))
    if differing:
        raise InputError(
            f"The checkpoint {checkpoint} does not fit the data: {'; '.join(differing)}. Restore the `data` section "
            "or begin another run."
        )
    change = _change(processor, data) if kept is None else kept.change(episode_identities(data.dataset))
    if change is not None:
        if config.training.data_on_resume == "same":
            raise InputError(
                f"{data.dataset.path} is not what the checkpoint {checkpoint} was trained on: {change}. Add "
                "training.data_on_resume=changed to continue with it (episodes that the run knows stay on their side "
                "of the split, and numbers are scaled as before), or begin another run."
            )
        return
    size = processor.image_size
    summary = summarise_inputs(data.dataset, data.train.episodes, list(processor.cameras), size)
    if processor.inputs is not None and (others := _other_images(processor.inputs, summary)):
        raise InputError(
            f"The checkpoint {checkpoint} does not fit the data: the images of {' and '.join(others)} differ "
            "from those it was trained on, while the numbers are the same. Check data.orientation and data.cameras."
        )


def _differing(processor: PolicyProcessor, data: TrainingData) -> Iterator[str]:
    """Name the differences between the policy's processor and the data."""
    dataset, cameras = data.dataset, data.cameras
    sizes = [min(dataset.image_size(camera)) for camera in cameras]
    pairs: list[tuple[str, object, object]] = [
        ("data.cameras", list(processor.cameras), cameras),
        ("the cameras' size in pixels", processor.camera_size, min(sizes, default=processor.camera_size)),
        ("data.history", processor.history, data.train.history),
        ("the number of proprio values", processor.proprio_dim, dataset.proprio_dim),
    ]
    differing = processor.action_spec.differences(dataset.action_spec)
    pairs += [(f"the actions' {what}", was, now) for what, was, now in differing]
    sources = sources_of(dataset)
    if len(processor.statistics) != len(sources):
        pairs.append(("the number of data.datasets", len(processor.statistics), len(sources)))
    elif len(sources) > 1:
        before, names = [s.source for s in processor.statistics], [s.name for s in sources]
        if sorted(before) == sorted(names):
            pairs.append(("the order of data.datasets", before, names))
        worlds = [s.environment for s in processor.statistics], [s.dataset.environment for s in sources]
        pairs.append(("the worlds of data.datasets", *worlds))
    for what, before_it, now_it in pairs:
        if before_it != now_it:
            yield f"{what} was {before_it} and is {now_it}"


def _change(processor: PolicyProcessor, data: TrainingData) -> str | None:
    """Like `KeptSplit.change`, for checkpoints without a split: from the number of episodes and frames trained on."""
    source_of = np.searchsorted([s.first for s in data.train.sources], data.train.episodes, side="right") - 1
    frames = np.bincount(data.train.source_of, minlength=len(processor.statistics))
    for number, source in enumerate(processor.statistics):
        found = int((source_of == number).sum()), int(frames[number])
        if found != (source.episodes, source.frames):
            return (
                f"{source.episodes} episodes of {source.frames} frames were trained on, but there are {found[0]} of "
                f"{found[1]}"
            )
    return None


def _other_images(was: TrainingInputs, now: TrainingInputs) -> list[str]:
    return [
        name
        for name, camera in now.cameras.items()
        if name in was.cameras
        and np.abs(was.cameras[name].thumbnail.astype(float) - camera.thumbnail).mean() > _OTHER_IMAGES
    ]
