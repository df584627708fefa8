"""`model` of the type `vlm`: an image-text model of the Hugging Face hub, and a head that reads its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from atlas.config.chosen_section import Chosen
from atlas.config.data_sections import DataConfig
from atlas.config.lora_section import LoRAConfig, check_one_way_to_train
from atlas.config.model_section import ModelConfig
from atlas.config.section import Layers, Section, Size, UserPath
from atlas.policies.modular.modular_section import AlignmentConfig, check_patches
from atlas.policies.vlm.vlm_head_sections import VLM_HEADS, VLMHeadSection

if TYPE_CHECKING:
    from atlas.policies.processor import PolicyProcessor
    from atlas.policies.vlm.vlm_policy import VLMPolicy
    from atlas.types import ActionSpec

BACKBONE_KEY = "model.backbone.pretrained"  # the setting that names weights
LORA_KEY = "model.backbone.lora"
TEACHER_KEY = "model.alignment.teacher.pretrained"
IMAGES, INSTRUCTION = "{images}", "{instruction}"  # in a prompt


class BackboneConfig(Section):
    """An image-text model (Qwen-VL, SmolVLM, PaliGemma, InternVL, Florence-2 ...), with the sizes of its own config.

    Its image part turns each view into tokens, and its language part reads these and the instruction.
    """

    pretrained: UserPath  # a folder, or a name on the hub, such as HuggingFaceTB/SmolVLM2-500M-Video-Instruct
    freeze: bool = True  # the whole model
    freeze_vision: bool = False  # only the image part, where freeze is false
    lora: LoRAConfig | None = None  # adapters in the language part; needs freeze
    learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1  # of training.learning_rate, for unfrozen weights
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of frozen weights; auto: bf16 on GPUs, fp32 on CPUs
    language_layers: Layers | None = None  # use only the first so many; null: all of them
    image_size: Size | None = None  # the side of the views that the model sees, pixels; null: by its own rule
    prompt: str | None = None  # with {images} and {instruction}; null: the model's training prompt
    max_length: Annotated[int, Field(ge=4, le=65536)] = (
        128  # tokens of an instruction; longer ones are cut and warned of
    )

    _one_way = model_validator(mode="after")(check_one_way_to_train)

    @field_validator("prompt")
    @classmethod
    def _has_both(cls, prompt: str | None) -> str | None:
        for part in (IMAGES, INSTRUCTION):
            if prompt is not None and prompt.count(part) != 1:
                raise ValueError(f"the prompt '{prompt}' must contain {part} exactly once")
        return prompt

    @property
    def vision_stays(self) -> bool:
        """Whether training leaves the image part's outputs unchanged."""
        return self.freeze or self.freeze_vision

    # ---- its image part as a CachedEncoder (atlas/policies/feature_cache_filling.py) -----------------------

    def check_pretrained(self) -> None:
        from atlas.policies.vlm.backbone import check_backbone

        check_backbone(self)

    def feature_shape(self, image_size: int) -> tuple[int, int]:
        from atlas.policies.vlm.backbone import Backbone

        backbone = Backbone.find(self, weights=False)
        return backbone.shape(image_size)

    def feature_source(self) -> dict[str, Any]:
        from atlas.policies.pretrained_weights import frozen_dtype

        precision = str(frozen_dtype(self.precision)).removeprefix("torch.")
        return {"backbone_precision": precision, "backbone_image_size": self.image_size}

    def weights_hash(self) -> str:
        from atlas.policies.vlm.backbone import Backbone

        return Backbone.find(self).vision_hash()

    def build_cached(self) -> Any:
        from atlas.policies.vlm.backbone import Backbone

        return Backbone.find(self).read_vision()


class VLMAlignmentConfig(AlignmentConfig):
    """Draws the image tokens after an inner layer of the language part towards a frozen VGGT's (Spatial Forcing)."""

    layer: Layers | None = None  # the language part's layer; null: the one after three quarters of them


class VLMConfig(ModelConfig):
    type: Literal["vlm"] = "vlm"
    takes_history, takes_relative_actions, clips_proprio = True, True, True
    backbone: BackboneConfig
    head: Annotated[VLMHeadSection, Chosen(VLM_HEADS, VLMHeadSection, "name", "vlm-oft")] = Field(default_factory=dict)  # type: ignore[assignment]
    alignment: VLMAlignmentConfig | None = None

    def build(self, processor: PolicyProcessor, folder: Path | None = None, read_weights: bool = True) -> VLMPolicy:
        from atlas.policies.vlm.vlm_policy import VLMPolicy

        return VLMPolicy(self, processor, folder, read_weights)

    @property
    def label(self) -> str:
        return self.head.name

    def describe(self) -> str:
        return f"image-text model `{self.backbone.pretrained}`, head `{self.head.name}`"

    def loss_terms(self, spec: ActionSpec) -> tuple[str, ...]:
        return (*self.head.loss_terms(spec), *(("alignment_loss",) if self.alignment is not None else ()))

    def check_data(self, data: DataConfig) -> None:
        if data.feature_cache is not None and not self.backbone.vision_stays:
            raise ValueError(
                "data.feature_cache holds features of a frozen image part; set model.backbone.freeze or "
                "model.backbone.freeze_vision to true"
            )
        if self.alignment is None:
            return
        teacher = self.alignment.teacher
        check_patches(
            "model.alignment.image_size", self.alignment.image_size, "its teacher's patch_size", teacher.patch_size
        )
        if self.backbone.freeze and self.backbone.lora is None:
            raise ValueError(
                "model.alignment trains the model's own tokens, but the whole model is frozen: set "
                "model.backbone.lora, or model.backbone.freeze to false"
            )
        if data.feature_cache is not None:
            raise ValueError(
                "model.alignment needs images, but data.feature_cache replaces them: leave one of them out"
            )

    def check_pretrained(self, folder: Path | None = None) -> None:
        import torch

        from atlas.policies.vlm.backbone import check_backbone
        from atlas.policies.vlm.vlm_policy import inner_layer
        from atlas.types import ActionSpec

        sizes = check_backbone(self.backbone)
        with torch.device("meta"):
            self.head.build(sizes, ActionSpec(), horizon=1, proprio_dim=1)
        if self.alignment is not None:
            inner_layer(self.alignment.layer, sizes.layers)
            self.alignment.teacher.check_pretrained(TEACHER_KEY)

    @property
    def cached_encoder(self) -> Any:
        return self.backbone if self.backbone.vision_stays else None

    def memory_advice(self) -> Sequence[str]:
        fewer = "model.backbone.language_layers=N: uses only the first N layers of the language part"
        frozen = "model.backbone.freeze=true: freezes the model; adapters (model.backbone.lora) can still learn"
        return (fewer,) if self.backbone.freeze else (frozen, fewer)
