"""`data`: what is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from atlas.config.section import NotNegative, Positive, Section


class RecordConfig(Section):
    """The demonstrations recorded when `data.path` is the default one and absent."""

    env: Literal["cubes"] = "cubes"
    episodes: Annotated[int, Field(ge=2, lt=10**5)] = 240
    seed: Annotated[int, Field(ge=0, lt=10**6)] = 0
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64


class AugmentConfig(Section):
    """Random changes of training images; each is a pure function of (seed, epoch, sample)."""

    shift: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # of the image's size, in both directions
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.2
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.2


class DataConfig(Section):
    path: str = "data/cubes"
    record: RecordConfig = RecordConfig()
    batch_size: Positive = 64  # samples a process
    num_workers: NotNegative | None = None  # null: 4 with a GPU, else none
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    cameras: Annotated[list[str], Field(min_length=1)] | None = None  # null: all of the dataset's
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    action_horizon: Positive = 8  # H: actions predicted at once
    # Which way up the source stores its images; auto: as its format has it. See atlas/data/orientation.py.
    orientation: Literal["auto", "upright", "upside_down", "rotated_180", "mirrored"] = "auto"
    drop_noops: bool = False
    feature_cache: str | None = None  # a folder made by `atlas data cache-features`, read in place of images
    augment: AugmentConfig = AugmentConfig()
