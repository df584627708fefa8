"""The configuration: every section typed and checked, read from YAML, changed by `key=value` overrides.

Imports no torch, so that the command line can refuse a wrong config in a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from atlas.errors import InputError, did_you_mean

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "train_config.yaml"

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


def _default_name(name: str) -> BeforeValidator:
    """In a section that comes in several kinds, the kind that is meant where `name` is left out."""
    return BeforeValidator(lambda v: {"name": name, **v} if isinstance(v, dict) else v)


SomeSection = TypeVar("SomeSection", bound=Section)


def _check_heads(section: SomeSection) -> SomeSection:
    """Validates any section with `dim` and `heads`."""
    dim, heads = section.dim, section.heads  # type: ignore[attr-defined]
    if dim % heads:
        near = max(1, round(dim / heads)) * heads
        raise ValueError(f"dim is {dim}; it must be a multiple of heads ({heads}), such as {near}")
    return section


# ---- data ------------------------------------------------------------------------------------------------


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


# ---- model -----------------------------------------------------------------------------------------------


class KeypointVisionConfig(Section):
    """A small convolutional net whose last maps become keypoints: positions, not only features."""

    name: Literal["keypoints"] = "keypoints"
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    keypoints: Positive = 32


class VGGTVisionConfig(Section):
    """VGGT's alternating-attention aggregator, trained from scratch in a small form."""

    name: Literal["vggt"] = "vggt"
    stem: Literal["keypoints", "conv", "patch"] = "keypoints"
    stem_width: Annotated[int, Field(ge=8, multiple_of=8)] = 16  # channels of the keypoint stem's first convolution
    keypoints: Positive = 32  # of each view; keypoint stem only
    keypoint_groups: Positive = 8  # tokens of each view; keypoint stem only
    embed_dim: Positive = 128
    depth: Positive = 2
    num_heads: Positive = 4
    num_register_tokens: NotNegative = 4
    patch_size: Positive = 16
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    rope_freq: Annotated[float, Field(gt=0)] = 100.0

    @model_validator(mode="after")
    def _sizes_agree(self) -> VGGTVisionConfig:
        if self.keypoints % self.keypoint_groups:
            raise ValueError(f"keypoints is {self.keypoints}, not a multiple of keypoint_groups {self.keypoint_groups}")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                f"embed_dim is {self.embed_dim}; it must be a multiple of 4 x num_heads ({self.num_heads})"
            )
        return self


class LoRAConfig(Section):
    """Low-rank adapters in the attention and MLP layers of a frozen backbone (Hu et al., 2021)."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0  # the adapters' output is scaled by alpha / rank
    dropout: Probability = 0.0


class PretrainedVGGTConfig(Section):
    """The published VGGT aggregator with its weights. The sizes are VGGT-1B's; another checkpoint needs its own."""

    name: Literal["vggt_pretrained"] = "vggt_pretrained"
    pretrained: str = "facebook/VGGT-1B"  # a .safetensors file, a folder with a model.safetensors, or a hub id
    freeze: bool = True
    lora: LoRAConfig | None = None
    learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1  # of training.learning_rate, for what is not frozen
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of frozen weights; auto: bf16 on GPUs, fp32 on CPUs
    recompute: bool = False  # with lora or without freeze: blocks again on the way back, in place of keeping all
    compile: bool = False  # torch.compile, with static shapes
    pool: Positive = 2  # patch tokens are averaged over pool x pool of them before anything reads them
    embed_dim: Positive = 1024
    depth: Positive = 24
    num_heads: Positive = 16
    num_register_tokens: NotNegative = 4
    img_size: Positive = 518  # of the position grid that the checkpoint holds
    patch_size: Positive = 14
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    rope_freq: Annotated[float, Field(gt=0)] = 100.0
    patch_embed_depth: Positive = 24
    patch_embed_num_heads: Positive = 16

    @model_validator(mode="after")
    def _one_way_to_train(self) -> PretrainedVGGTConfig:
        if self.lora is not None and not self.freeze:
            raise ValueError("lora is set and freeze is false; adapters go with frozen weights, so set one of the two")
        return self


class BytesLanguageConfig(Section):
    """A small transformer over the instruction's bytes, trained from scratch."""

    name: Literal["bytes"] = "bytes"
    dim: Positive = 64
    layers: Positive = 2
    heads: Positive = 4
    max_length: Positive = 128  # bytes and an end token; what is longer is cut, with a warning

    _heads_fit = model_validator(mode="after")(_check_heads)


class HuggingFaceLanguageConfig(Section):
    """A pretrained text encoder (T5, CLIP, SigLIP, BERT, Qwen, Llama ...), whose width is read from its own config."""

    name: Literal["huggingface"] = "huggingface"
    pretrained: str  # a folder, or a name on the Hugging Face hub, such as google-t5/t5-small
    freeze: bool = True  # each instruction is then encoded once
    learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1  # of training.learning_rate, where it is not frozen
    max_length: Annotated[int, Field(ge=4)] = 128  # tokens; what is longer is cut, with a warning


class QueryFusionConfig(Section):
    """Action queries that attend to the tokens of vision, language and proprio."""

    name: Literal["queries"] = "queries"
    dim: Positive = 128
    layers: Positive = 1
    heads: Positive = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Probability = 0.0

    _heads_fit = model_validator(mode="after")(_check_heads)


class BidirectionalFusionConfig(Section):
    """As `queries`, after layers in which the tokens of vision and language attend to each other."""

    name: Literal["bidirectional"] = "bidirectional"
    dim: Positive = 128
    exchange_layers: Positive = 1
    layers: Positive = 1
    heads: Positive = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Probability = 0.0

    _heads_fit = model_validator(mode="after")(_check_heads)


class RegressionHeadConfig(Section):
    """The whole chunk at once: the pose by regression, the gripper as a logit."""

    name: Literal["regression"] = "regression"
    pose_loss: Literal["l1", "mse", "smooth_l1"] = "l1"
    pose_weight: Weight = 1.0
    gripper_weight: Weight = 0.1


class FlowMatchingHeadConfig(Section):
    """A diffusion transformer over the chunk, trained to move noise to actions along straight lines."""

    name: Literal["flow_matching"] = "flow_matching"
    dim: Positive = 128
    layers: Positive = 2
    heads: Positive = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    steps: Positive = 8  # of the solver, when actions are sampled
    solver: Literal["euler", "midpoint", "rk4"] = "euler"
    pose_weight: Weight = 1.0
    gripper_weight: Weight = 0.2

    _heads_fit = model_validator(mode="after")(_check_heads)


class AlignmentConfig(Section):
    """Draws the policy's own image tokens towards a frozen VGGT's (Spatial Forcing); costs nothing in a rollout."""

    teacher: PretrainedVGGTConfig = PretrainedVGGTConfig()
    image_size: Positive = 224  # what the teacher sees
    weight: Annotated[float, Field(gt=0)] = 0.5


class ProcessorConfig(Section):
    """How actions and proprio are scaled for the network, from the training episodes' statistics."""

    action_normalization: Literal["quantiles", "mean_std", "min_max"] = "quantiles"
    proprio_normalization: Literal["quantiles", "mean_std", "min_max"] = "mean_std"


VisionConfig = Annotated[
    KeypointVisionConfig | VGGTVisionConfig | PretrainedVGGTConfig,
    Field(discriminator="name"),
    _default_name("keypoints"),
]
LanguageConfig = Annotated[
    BytesLanguageConfig | HuggingFaceLanguageConfig, Field(discriminator="name"), _default_name("bytes")
]
FusionConfig = Annotated[
    QueryFusionConfig | BidirectionalFusionConfig, Field(discriminator="name"), _default_name("queries")
]
HeadConfig = Annotated[
    RegressionHeadConfig | FlowMatchingHeadConfig, Field(discriminator="name"), _default_name("regression")
]


class ModelConfig(Section):
    vision: VisionConfig = KeypointVisionConfig()
    language: LanguageConfig = BytesLanguageConfig()
    fusion: FusionConfig = QueryFusionConfig()
    head: HeadConfig = RegressionHeadConfig()
    alignment: AlignmentConfig | None = None
    processor: ProcessorConfig = ProcessorConfig()


# ---- training --------------------------------------------------------------------------------------------


class TrainingConfig(Section):
    max_steps: Positive | None = 4000  # optimizer steps; or num_epochs
    num_epochs: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Weight = 0.01
    warmup_steps: NotNegative = 100
    gradient_accumulation_steps: Positive = 1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on GPUs that have it, else fp32
    log_interval: Positive = 50
    val_interval: Positive = 500
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995  # 0: no averaging of the weights

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.max_steps is None) == (self.num_epochs is None):
            state = "neither is set" if self.max_steps is None else "both are set"
            raise ValueError(f"max_steps and num_epochs: {state}; set one, and the other to null")
        return self


class CheckpointConfig(Section):
    save_interval: Positive = 1300
    keep_last_n: Positive = 3  # besides the best one


class ModelManagementConfig(Section):
    best_model_metric: str = "auto"  # auto: eval/success_rate when there are rollouts, else val/loss
    best_model_mode: Literal["auto", "max", "min"] = "auto"


class EvaluationConfig(Section):
    """Closed-loop episodes in a simulator: during training (to choose the best checkpoint) and at the end."""

    env: str = "auto"  # auto: the world that the data was recorded in, where there is an adapter for it; none
    episodes: NotNegative = 20  # at each evaluation during training; 0: no rollouts
    interval: Positive = 1300  # optimizer steps
    final_episodes: NotNegative = 40  # of the best checkpoint, after training
    video: NotNegative = 4  # episodes filmed in the final evaluation
    execute: Positive = 4  # actions of each predicted chunk that are executed
    ensemble: Annotated[float, Field(ge=0)] | None = None  # temporal ensembling's weight; null: off
    workers: Positive | None = None  # environment processes a rank; null: one a core


# ---- running ---------------------------------------------------------------------------------------------


class LoggingConfig(Section):
    exit_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0  # the longest that a tracker may hold the exit


class WandbConfig(Section):
    enabled: bool = False
    project: str = "atlas-vla"
    entity: str | None = None
    name: str | None = None  # null: run_name
    tags: list[str] = []
    notes: str | None = None
    save_code: bool = False
    resume: Literal["allow", "must", "never", "auto"] = "allow"
    mode: Literal["online", "offline", "disabled"] = "online"
    group: str | None = None
    system_stats: bool = True


class DistributedConfig(Section):
    mode: Literal["auto", "single", "multi"] = "auto"  # auto: all visible GPUs, or one CPU process
    gpus: Positive | None = None  # processes; with cpu: true, CPU processes
    gpu_ids: list[NotNegative] | None = None
    cpu: bool = False

    @model_validator(mode="after")
    def _no_contradiction(self) -> DistributedConfig:
        if self.mode == "single" and (self.gpus or 1) > 1:
            raise ValueError(f"mode is 'single' and gpus is {self.gpus}; use mode 'multi', or gpus 1")
        if self.cpu and self.gpu_ids:
            raise ValueError("cpu is true and gpu_ids are given; set one of them")
        if self.gpu_ids is not None and self.gpus is not None and len(self.gpu_ids) != self.gpus:
            raise ValueError(f"gpus is {self.gpus} and gpu_ids names {len(self.gpu_ids)}; give one, or make them agree")
        return self


class Config(Section):
    run_name: str | None = None  # null: made of dataset, head, learning rate and time
    output_dir: str = "outputs"
    seed: Annotated[int, Field(ge=0, lt=10**6)] = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    wandb: WandbConfig = WandbConfig()
    model_management: ModelManagementConfig = ModelManagementConfig()
    distributed: DistributedConfig = DistributedConfig()

    @model_validator(mode="after")
    def _agree(self) -> Config:
        if self.evaluation.execute > self.data.action_horizon:
            raise ValueError(
                f"evaluation.execute is {self.evaluation.execute} and data.action_horizon is "
                f"{self.data.action_horizon}; at most the predicted actions can be executed"
            )
        vision, size = self.model.vision, self.data.image_size
        own_patches = isinstance(vision, VGGTVisionConfig) and vision.stem != "keypoints"
        if isinstance(vision, PretrainedVGGTConfig) or (isinstance(vision, VGGTVisionConfig) and own_patches):
            _check_patches("data.image_size", size, "model.vision.patch_size", vision.patch_size)
        alignment = self.model.alignment
        if alignment is not None:
            patch = alignment.teacher.patch_size
            _check_patches("model.alignment.image_size", alignment.image_size, "its teacher's patch_size", patch)
            if not own_patches:
                raise ValueError(
                    "model.alignment needs an encoder of its own that has patches to align: "
                    "set model.vision to {name: vggt, stem: conv} or {name: vggt, stem: patch}"
                )
        if self.data.feature_cache is not None and not (
            isinstance(vision, PretrainedVGGTConfig) and vision.freeze and vision.lora is None
        ):
            raise ValueError(
                "data.feature_cache holds what a frozen backbone says; it needs model.vision.name vggt_pretrained, "
                "frozen and without lora"
            )
        if self.run_name is not None and (not self.run_name or "/" in self.run_name or self.run_name.startswith(".")):
            raise ValueError(f"run_name '{self.run_name}' must be usable as a folder's name")
        return self


def _check_patches(key: str, size: int, patch_key: str, patch: int) -> None:
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise ValueError(f"{key} is {size}; it must be a multiple of {patch_key} ({patch}), such as {near}")


# ---- reading and writing ---------------------------------------------------------------------------------


def load_config(source: str | Path | Config | dict[str, Any] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config from a YAML file (None: the default one), a mapping or a Config, with overrides on top.

    overrides: 'key=value' with dotted keys, values as YAML: 'training.learning_rate=3e-4', 'data.cameras=[agentview]'.
    Raises InputError that names the key, and the nearest valid one where it is unknown.
    """
    name = "the config"
    if isinstance(source, Config):
        values = source.model_dump()
    elif isinstance(source, dict):
        values = yaml.safe_load(yaml.safe_dump(source))
    else:
        path = Path(source) if source is not None else DEFAULT_CONFIG
        name = str(path)
        values = _read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, name)


def parse_config(values: dict[str, Any], name: str = "the config") -> Config:
    """A checked Config of plain values; `name` says in messages where they are from. Raises InputError."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_explain(dict(problem)) for problem in error.errors()]
        raise InputError(f"In {name}: " + "\n".join(problems)) from None


def dump_yaml(config: Config) -> str:
    """The whole config, defaults included, as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_schema() -> dict[str, Any]:
    """The JSON schema of the config file, for editors."""
    return Config.model_json_schema()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"The config file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The config file {path} is not a text file.") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"The config file {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"The config file {path} must hold sections such as 'data:', it holds a {type(values)}.")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"'{override}' is not an override; it should be key=value, such as training.max_steps=100.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"The value in '{override}' is not valid YAML: {error}") from None
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise InputError(f"'{override}': '{section}' is a value and has no keys below it.")
    if sections[:1] == ["model"] and last == "name" and place.get("name") != value:
        place.clear()  # another kind of part: the settings of the old one are not its own
    place[last] = value


def _explain(problem: dict[str, Any]) -> str:
    """One line for one of pydantic's complaints, in the words of the file."""
    location = problem["loc"]
    # Where a section comes in several kinds, the location holds the kind's name, which is no key of the file.
    key = ".".join(str(part) for i, part in enumerate(location) if not isinstance(_section(location[:i]), list))
    if problem["type"] == "extra_forbidden":
        section = _section(location[:-1])
        known = [] if section is None or isinstance(section, list) else list(section.model_fields)
        return f"unknown key '{key}'.{did_you_mean(str(location[-1]), known)} Known here: {', '.join(sorted(known))}."
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = "" if isinstance(problem["input"], dict | BaseModel) else f" (given: {problem['input']!r})"
    return f"'{key}': {message}{given}" if key else f"{message}{given}"


def _section(location: Sequence[Any]) -> type[BaseModel] | list[type[BaseModel]] | None:
    """The section at a location of pydantic's; a list where it comes in kinds and none is chosen; None for a value."""
    section: type[BaseModel] | list[type[BaseModel]] | None = Config
    for part in location:
        if isinstance(section, list):
            section = next((kind for kind in section if kind.model_fields["name"].default == part), None)
        elif section is not None and part in section.model_fields:
            section = _sections_in(section.model_fields[part].annotation)
        else:
            return None
    return section


def _sections_in(annotation: Any) -> type[BaseModel] | list[type[BaseModel]] | None:
    members = getattr(annotation, "__args__", (annotation,))
    sections = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    return sections if len(sections) > 1 else next(iter(sections), None)
