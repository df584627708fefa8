"""`data`: what the policy is trained on."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from atlas.config.action_sections import SourceActionsConfig, StateRotations
from atlas.config.section import Names, NotNegative, Positive, Section, Size, UserPath
from atlas.errors import InputError


class RecordConfig(Section):
    """The demonstrations that are recorded if `data.path` is the default and does not exist."""

    env: Literal["cubes"] = "cubes"
    episodes: Annotated[int, Field(ge=2, lt=10**5)] = 240
    seed: Annotated[int, Field(ge=0, lt=10**6)] = 0
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    randomize: tuple[str, ...] = ()  # perturbations of the scenes, as `atlas data record --randomize` has them


class AugmentConfig(Section):
    """Random changes to training images; each is a pure function of (seed, epoch, sample)."""

    shift: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # as a share of the image's size, in both directions
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.2
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.2
    # As if a camera stood elsewhere; the same for all frames of a sample that are of one camera.
    zoom: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # nearer (a crop) or farther (the border repeats), by this share
    turn_deg: Annotated[float, Field(ge=0, le=45)] = 0.0  # rolled to either side
    drop_view: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the share of samples with one of several cameras black

    def described(self) -> dict[str, float]:
        """Return plain values, to keep with caches; those that came later are left out where they are off."""
        later = ("zoom", "turn_deg", "drop_view")
        return {name: value for name, value in self.model_dump().items() if value or name not in later}


class FeaturesConfig(Section):
    """The meaning of a LeRobot dataset's features; null: decided by their names."""

    cameras: Annotated[dict[str, str], Field(min_length=1)] | None = None  # {name: key of a video or image feature}
    proprio: str | Names | None = None  # a key, or several whose numbers are concatenated
    proprio_rotations: StateRotations = []  # those among its numbers that the policy is shown in another form
    action: str | Names | None = None  # a key, or several whose numbers are concatenated
    instruction: Literal["task", "subtask"] = "task"  # of each frame: LeRobot's task, or its sub-task
    action_spec: SourceActionsConfig | None = None  # null: told by names and robot_type, or LIBERO's seven numbers


class HistoryConfig(Section):
    """The frames that the policy sees: the present one, and earlier ones that are `stride` control steps apart. Before
    an episode's first frame there is that frame again."""

    steps: Annotated[int, Field(ge=1, le=16)] = 1  # 1: the present frame alone
    stride: Annotated[int, Field(ge=1, le=1000)] = 1


# Which way up a source stores its images; auto: as usual for its format. See atlas/data/orientation.py.
StoredOrientation = Literal["auto", "upright", "upside_down", "rotated_180", "mirrored"]


class SourceConfig(Section):
    """One source of a mixture, and how it is read."""

    path: UserPath
    name: str | None = None  # used in messages and in the saved statistics; null: derived from the path
    weight: Annotated[float, Field(gt=0)] = 1.0  # its share of the samples if data.balance is weights
    # The cameras to use, by the source's names; or {the mixture's name: the source's name}. null: all
    cameras: Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)] | None = None
    orientation: StoredOrientation = "auto"
    features: FeaturesConfig | None = None  # for LeRobot datasets whose names Atlas does not know
    instruction: str | None = None  # for datasets that have none
    drop_noops: bool = False

    @property
    def label(self) -> str:
        """Its name, or one derived from its path."""
        return self.name or PurePath(self.path).name or self.path


class DataConfig(Section):
    path: UserPath = "data/cubes"
    datasets: Annotated[list[SourceConfig], Field(min_length=1)] | None = None  # instead of path: a mixture
    # What an epoch draws. weights: from each source its weight's share; dataset: equally many from each source; task:
    # equally many from each instruction; samples: each sample once.
    balance: Literal["weights", "dataset", "task", "samples"] = "weights"
    record: RecordConfig = RecordConfig()
    batch_size: Positive | Literal["auto"] = 64  # samples per process; auto: the largest that fits
    num_workers: NotNegative | None = None  # null: 4 with a GPU, otherwise none
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    cameras: Annotated[list[str], Field(min_length=1)] | None = None  # null: all of the dataset's
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    action_horizon: Size = 8  # H: actions predicted at once
    history: HistoryConfig = HistoryConfig()
    chunks_cross_tasks: bool = False  # false: a chunk ends where the instruction changes within an episode
    orientation: StoredOrientation = "auto"
    features: FeaturesConfig | None = None  # for LeRobot datasets whose names Atlas does not know
    instruction: str | None = None  # for datasets that have none
    drop_noops: bool = False
    skip_damaged: bool = False  # leave out damaged files and episodes, and say which
    frame_cache: UserPath | None = None  # a folder for decoded frames of image_size, filled before training
    feature_cache: UserPath | None = None  # a folder made by `atlas data cache-features`, read instead of images
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _agree(self) -> DataConfig:
        if self.frame_cache is not None and self.feature_cache is not None:
            raise ValueError("frame_cache and feature_cache are both set; features are read instead of images")
        if self.history.steps > 1:
            if self.feature_cache is not None:
                raise ValueError(
                    f"history.steps is {self.history.steps}, but feature_cache holds single frames; leave out one"
                )
            if self.drop_noops or any(source.drop_noops for source in self.datasets or []):
                raise ValueError(
                    f"history.steps is {self.history.steps}, but drop_noops leaves frames out, after which recorded "
                    "frames are no longer a control step apart, as a robot's are; leave out one"
                )
        if self.datasets is None:
            return self
        for key in ("path", "orientation", "features", "instruction", "drop_noops"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"datasets and {key} are both set; set {key} in each of the datasets, such as "
                    f"datasets=[{{path: …{'' if key == 'path' else f', {key}: …'}}}]"
                )
        names = [source.label for source in self.datasets]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(
                    f"datasets.{i} and datasets.{names.index(name)} are both called '{name}'; give one of them another "
                    f"name: {{path: {self.datasets[i].path}, name: …}}"
                )
        weighted = next((i for i, source in enumerate(self.datasets) if source.weight != 1), None)
        if weighted is not None and self.balance != "weights":
            raise ValueError(
                f"datasets.{weighted}.weight is {self.datasets[weighted].weight:g}, but balance is '{self.balance}', "
                "which takes no weights; leave the weights out, or set balance to weights"
            )
        return self

    @property
    def sources(self) -> list[SourceConfig]:
        """The datasets to read: those of the mixture, or the single one at `path`."""
        if self.datasets is not None:
            return self.datasets
        same = ("path", "orientation", "features", "instruction", "drop_noops")
        return [SourceConfig(**{key: getattr(self, key) for key in same})]

    @property
    def reads_default(self) -> bool:
        """Whether the default dataset, which is recorded if absent, is among the sources."""
        return any(source.path == type(self).model_fields["path"].default for source in self.sources)

    @property
    def label(self) -> str:
        """A short name for what is trained on, usable as part of a folder's name."""
        names = [source.label.replace("/", "-") for source in self.sources]
        return "+".join(names) if len(names) <= 3 else f"{names[0]}+{len(names) - 1}"

    @property
    def batch_samples(self) -> int:
        """`batch_size` as a number. Raises InputError while it is 'auto', which training settles when it starts."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        raise InputError("data.batch_size is 'auto', which only training can resolve; give a number here.")
