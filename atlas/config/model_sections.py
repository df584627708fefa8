"""`model`: what is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from atlas.config.section import Layers, Probability, Section, Size, UserPath, Weight, check_heads, default_name


class KeypointVisionConfig(Section):
    """A small convolutional net whose last maps become keypoints: positions, not only features."""

    name: Literal["keypoints"] = "keypoints"
    width: Annotated[int, Field(ge=8, le=65536, multiple_of=8)] = 16
    keypoints: Size = 32


class VGGTVisionConfig(Section):
    """VGGT's alternating-attention aggregator, trained from scratch in a small form."""

    name: Literal["vggt"] = "vggt"
    stem: Literal["keypoints", "conv", "patch"] = "keypoints"
    stem_width: Annotated[int, Field(ge=8, le=65536, multiple_of=8)] = (
        16  # channels of the keypoint stem's first convolution
    )
    keypoints: Size = 32  # of each view; keypoint stem only
    keypoint_groups: Size = 8  # tokens of each view; keypoint stem only
    embed_dim: Size = 128
    depth: Layers = 2
    num_heads: Size = 4
    num_register_tokens: Annotated[int, Field(ge=0, le=65536)] = 4
    patch_size: Size = 16
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

    rank: Size = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0  # the adapters' output is scaled by alpha / rank
    dropout: Probability = 0.0


class PretrainedVGGTConfig(Section):
    """The published VGGT aggregator with its weights. The sizes are VGGT-1B's; another checkpoint needs its own."""

    name: Literal["vggt_pretrained"] = "vggt_pretrained"
    pretrained: UserPath = "facebook/VGGT-1B"  # a .safetensors file, a folder with a model.safetensors, or a hub id
    freeze: bool = True
    lora: LoRAConfig | None = None
    learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1  # of training.learning_rate, for what is not frozen
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of frozen weights; auto: bf16 on GPUs, fp32 on CPUs
    recompute: bool = False  # with lora or without freeze: blocks again on the way back, in place of keeping all
    compile: bool = False  # torch.compile, with static shapes
    pool: Size = 2  # patch tokens are averaged over pool x pool of them before anything reads them
    embed_dim: Size = 1024
    depth: Layers = 24
    num_heads: Size = 16
    num_register_tokens: Annotated[int, Field(ge=0, le=65536)] = 4
    img_size: Size = 518  # of the position grid that the checkpoint holds
    patch_size: Size = 14
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    rope_freq: Annotated[float, Field(gt=0)] = 100.0
    patch_embed_depth: Layers = 24
    patch_embed_num_heads: Size = 16

    @model_validator(mode="after")
    def _one_way_to_train(self) -> PretrainedVGGTConfig:
        if self.lora is not None and not self.freeze:
            raise ValueError("lora is set and freeze is false; adapters go with frozen weights, so set one of the two")
        return self


class BytesLanguageConfig(Section):
    """A small transformer over the instruction's bytes, trained from scratch."""

    name: Literal["bytes"] = "bytes"
    dim: Size = 64
    layers: Layers = 2
    heads: Size = 4
    max_length: Size = 128  # bytes and an end token; what is longer is cut, with a warning

    _heads_fit = model_validator(mode="after")(check_heads)


class HuggingFaceLanguageConfig(Section):
    """A pretrained text encoder (T5, CLIP, SigLIP, BERT, Qwen, Llama ...), whose width is read from its own config."""

    name: Literal["huggingface"] = "huggingface"
    pretrained: UserPath  # a folder, or a name on the Hugging Face hub, such as google-t5/t5-small
    freeze: bool = True  # each instruction is then encoded once
    learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1  # of training.learning_rate, where it is not frozen
    max_length: Annotated[int, Field(ge=4, le=65536)] = 128  # tokens; what is longer is cut, with a warning


class QueryFusionConfig(Section):
    """Action queries that attend to the tokens of vision, language and proprio."""

    name: Literal["queries"] = "queries"
    dim: Size = 128
    layers: Layers = 1
    heads: Size = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Probability = 0.0

    _heads_fit = model_validator(mode="after")(check_heads)


class BidirectionalFusionConfig(Section):
    """As `queries`, after layers in which the tokens of vision and language attend to each other."""

    name: Literal["bidirectional"] = "bidirectional"
    dim: Size = 128
    exchange_layers: Layers = 1
    layers: Layers = 1
    heads: Size = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Probability = 0.0

    _heads_fit = model_validator(mode="after")(check_heads)


class RegressionHeadConfig(Section):
    """The whole chunk at once: the pose by regression, the gripper as a logit."""

    name: Literal["regression"] = "regression"
    pose_loss: Literal["l1", "mse", "smooth_l1"] = "l1"
    pose_weight: Weight = 1.0
    gripper_weight: Weight = 0.1


class FlowMatchingHeadConfig(Section):
    """A diffusion transformer over the chunk, trained to move noise to actions along straight lines."""

    name: Literal["flow_matching"] = "flow_matching"
    dim: Size = 128
    layers: Layers = 2
    heads: Size = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    steps: Size = 8  # of the solver, when actions are sampled
    solver: Literal["euler", "midpoint", "rk4"] = "euler"
    pose_weight: Weight = 1.0
    gripper_weight: Weight = 0.2

    _heads_fit = model_validator(mode="after")(check_heads)


class AlignmentConfig(Section):
    """Draws the policy's own image tokens towards a frozen VGGT's (Spatial Forcing); costs nothing in a rollout."""

    teacher: PretrainedVGGTConfig = PretrainedVGGTConfig()
    image_size: Size = 224  # what the teacher sees
    weight: Annotated[float, Field(gt=0)] = 0.5


class ProcessorConfig(Section):
    """How actions and proprio are scaled for the network, from the training episodes' statistics."""

    action_normalization: Literal["quantiles", "mean_std", "min_max"] = "quantiles"
    proprio_normalization: Literal["quantiles", "mean_std", "min_max"] = "mean_std"


VisionConfig = Annotated[
    KeypointVisionConfig | VGGTVisionConfig | PretrainedVGGTConfig,
    Field(discriminator="name"),
    default_name("keypoints"),
]
LanguageConfig = Annotated[
    BytesLanguageConfig | HuggingFaceLanguageConfig, Field(discriminator="name"), default_name("bytes")
]
FusionConfig = Annotated[
    QueryFusionConfig | BidirectionalFusionConfig, Field(discriminator="name"), default_name("queries")
]
HeadConfig = Annotated[
    RegressionHeadConfig | FlowMatchingHeadConfig, Field(discriminator="name"), default_name("regression")
]


class ModelConfig(Section):
    vision: VisionConfig = KeypointVisionConfig()
    language: LanguageConfig = BytesLanguageConfig()
    fusion: FusionConfig = QueryFusionConfig()
    head: HeadConfig = RegressionHeadConfig()
    alignment: AlignmentConfig | None = None
    processor: ProcessorConfig = ProcessorConfig()
