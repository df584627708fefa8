"""`data`: what is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from atlas.config.section import NotNegative, Positive, Section
from atlas.errors import InputError


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


Dimension = Annotated[int, Field(ge=0)]
Unit = Annotated[float, Field(gt=0)]


class SourceActionsConfig(Section):
    """What the numbers of a source's actions mean; Atlas turns them into its own.

    Ranges are the first and one past the last dimension. Dimensions that are not named are left out.
    """

    position: tuple[Dimension, Dimension] = (0, 3)
    rotation: tuple[Dimension, Dimension] = (3, 6)  # axis and angle; an empty range where there is none
    gripper: Dimension = 6
    gripper_open: float = -1.0  # the source's value for it
    gripper_closed: float = 1.0
    delta: bool = True  # false: a pose to go to
    position_unit_m: Unit | None = None  # what 1 means; null: 0.05 for deltas (LIBERO's), else 1
    rotation_unit_rad: Unit | None = None  # likewise; null: 0.5 for deltas, else 1
    control_hz: Unit | None = None  # actions a second; null: the dataset's fps

    @model_validator(mode="after")
    def _agree(self) -> SourceActionsConfig:
        if self.position[1] - self.position[0] not in (1, 2, 3):
            raise ValueError(
                f"position is {list(self.position)}, a range of 1 to 3 dimensions is needed, such as [0, 3]"
            )
        if self.rotation[1] - self.rotation[0] not in (0, 3):
            raise ValueError(
                f"rotation is {list(self.rotation)}, a range of the 3 dimensions of an axis-angle is needed, such as "
                "[3, 6], or an empty one, such as [3, 3]"
            )
        used = [*range(*self.position), *range(*self.rotation), self.gripper]
        if len(set(used)) < len(used):
            raise ValueError("position, rotation and gripper must be dimensions of their own, and two share one")
        if self.gripper_open == self.gripper_closed:
            raise ValueError(f"gripper_open and gripper_closed are both {self.gripper_open:g}, and must differ")
        return self


Names = Annotated[list[str], Field(min_length=1)]


class FeaturesConfig(Section):
    """Which of a LeRobot dataset's features are what; null: as its names say."""

    cameras: Annotated[dict[str, str], Field(min_length=1)] | None = None  # {name: key of a video or image feature}
    proprio: str | Names | None = None  # a key, or several whose numbers come one after the other
    action: str | None = None  # a key
    action_spec: SourceActionsConfig | None = None  # null: LIBERO's seven numbers


class DataConfig(Section):
    path: str = "data/cubes"
    record: RecordConfig = RecordConfig()
    batch_size: Positive | Literal["auto"] = 64  # samples a process; auto: the largest that fits
    num_workers: NotNegative | None = None  # null: 4 with a GPU, else none
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    cameras: Annotated[list[str], Field(min_length=1)] | None = None  # null: all of the dataset's
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    action_horizon: Positive = 8  # H: actions predicted at once
    # Which way up the source stores its images; auto: as its format has it. See atlas/data/orientation.py.
    orientation: Literal["auto", "upright", "upside_down", "rotated_180", "mirrored"] = "auto"
    features: FeaturesConfig | None = None  # for LeRobot datasets whose names Atlas does not know
    drop_noops: bool = False
    feature_cache: str | None = None  # a folder made by `atlas data cache-features`, read in place of images
    augment: AugmentConfig = AugmentConfig()

    @property
    def batch_samples(self) -> int:
        """`batch_size` as a number. Raises InputError while it is 'auto', which training settles at its start."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        raise InputError("data.batch_size is 'auto', which only a training can find out; give a number here.")
