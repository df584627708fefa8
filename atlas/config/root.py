"""The whole config, and what its sections must agree on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from atlas.config.data_sections import DataConfig
from atlas.config.model_sections import ModelConfig, PretrainedVGGTConfig, VGGTVisionConfig
from atlas.config.section import Section, UserPath
from atlas.config.tracking_sections import LoggingConfig, ModelManagementConfig, WandbConfig
from atlas.config.training_sections import CheckpointConfig, DistributedConfig, EvaluationConfig, TrainingConfig
from atlas.system.paths import unfit


class Config(Section):
    run_name: str | None = None  # null: made of dataset, head, learning rate and time
    output_dir: UserPath = "outputs"
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
        name = self.run_name
        if name is not None and (name.startswith(".") or "/" in name or unfit(name)):
            raise ValueError(f"run_name {name!r} must be usable as a folder's name")
        return self


def _check_patches(key: str, size: int, patch_key: str, patch: int) -> None:
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise ValueError(f"{key} is {size}; it must be a multiple of {patch_key} ({patch}), such as {near}")
