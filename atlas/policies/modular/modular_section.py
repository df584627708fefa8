"""`model` of the type `modular`: a policy made of parts, vision | language | fusion | head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from atlas.config.data_sections import DataConfig
from atlas.config.model_section import ModelConfig
from atlas.config.section import Section, Size
from atlas.policies.modular.parts import Fused, Head, Language, Vision
from atlas.policies.modular.vision_encoders.vision_sections import PretrainedVGGTConfig

if TYPE_CHECKING:
    from atlas.policies.modular.policy import ModularPolicy
    from atlas.policies.processor import PolicyProcessor
    from atlas.types import ActionSpec

TEACHER_KEY = "model.alignment.teacher.pretrained"


class AlignmentConfig(Section):
    """Draws the policy's own image tokens towards a frozen VGGT's (Spatial Forcing); costs nothing in a rollout."""

    teacher: PretrainedVGGTConfig = PretrainedVGGTConfig()
    image_size: Size = 224  # the image size for the teacher
    weight: Annotated[float, Field(gt=0)] = 0.5


class ModularConfig(ModelConfig):
    type: Literal["modular"] = "modular"
    takes_history, takes_relative_actions, clips_proprio = True, True, True
    vision: Vision = Field(default_factory=dict)  # type: ignore[assignment]  # validated, into the kind that is meant
    language: Language = Field(default_factory=dict)  # type: ignore[assignment]
    fusion: Fused = Field(default_factory=dict)  # type: ignore[assignment]
    head: Head = Field(default_factory=dict)  # type: ignore[assignment]
    alignment: AlignmentConfig | None = None

    def build(self, processor: PolicyProcessor, folder: Path | None = None, read_weights: bool = True) -> ModularPolicy:
        from atlas.policies.modular.policy import ModularPolicy

        return ModularPolicy(self, processor, folder, read_weights)

    @property
    def label(self) -> str:
        return self.head.name

    def describe(self) -> str:
        return (
            f"vision `{self.vision.name}`, language `{self.language.name}`, fusion `{self.fusion.name}`, head\n"
            f"  `{self.head.name}`"
        )

    def loss_terms(self, spec: ActionSpec) -> tuple[str, ...]:
        return (*self.head.loss_terms(spec), *(("alignment_loss",) if self.alignment is not None else ()))

    @property
    def reads_images(self) -> bool:
        return self.vision.reads_images

    def check_data(self, data: DataConfig) -> None:
        if not self.reads_images and data.cameras is not None:
            raise ValueError("data.cameras names cameras, but model.vision.name is none; leave one of them out")
        if self.vision.patch is not None:
            check_patches("data.image_size", data.image_size, "model.vision.patch_size", self.vision.patch)
        if self.alignment is not None:
            patch = self.alignment.teacher.patch_size
            check_patches("model.alignment.image_size", self.alignment.image_size, "its teacher's patch_size", patch)
            if not self.vision.gives_patches:
                raise ValueError(
                    "model.alignment needs a trained encoder that has patches to align: "
                    "set model.vision to {name: vggt, stem: conv}, {name: vggt, stem: patch}, or {name: huggingface, "
                    "pretrained: …, freeze: false}"
                )
        if data.feature_cache is not None and self.cached_encoder is None:
            raise ValueError(
                "data.feature_cache holds a frozen backbone's outputs; it needs model.vision.name vggt_pretrained or "
                "huggingface, frozen and without lora"
            )

    def check_pretrained(self, folder: Path | None = None) -> None:
        self.vision.check_pretrained()
        if self.alignment is not None:
            self.alignment.teacher.check_pretrained(TEACHER_KEY)
        self.language.check_pretrained()

    @property
    def cached_encoder(self) -> Any:
        return self.vision if self.vision.stays_the_same else None

    @property
    def compiling_key(self) -> str | None:
        return "model.vision.compile" if self.vision.compiles else None

    def memory_advice(self) -> Sequence[str]:
        return *self.vision.memory_advice(), *self.language.memory_advice()


def check_patches(key: str, size: int, patch_key: str, patch: int) -> None:
    """Raises ValueError, in the config's terms, for a size that patches do not fill."""
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise ValueError(f"{key} is {size}; it must be a multiple of {patch_key} ({patch}), such as {near}")
