"""`model` of the types `pi0` and `pi05`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from atlas.config.lora_section import LoRAConfig
from atlas.policies.pi.pi_sizes import BackboneSizes
from atlas.policies.published.published_section import PublishedConfig

LORA_KEY = "model.lora"


class PiConfig(PublishedConfig):
    """The common part of pi0's and pi0.5's sections. By default all weights are trained, as in LeRobot."""

    sizes: BackboneSizes | None = None  # null: those of the folder's backbone.json, else those its config.json names
    # Which weights are trained; null: as config.json says, which in published policies is all of them
    train_expert_only: bool | None = None
    freeze_vision_encoder: bool | None = None
    lora: LoRAConfig | None = None  # adapters in the backbone, which is otherwise frozen; the whole expert is trained
    # A factor of training.learning_rate for the backbone's trained weights
    backbone_learning_rate_factor: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _one_way_to_train(self) -> PiConfig:
        if self.lora is not None and self.train_expert_only:
            raise ValueError(
                "lora is set and train_expert_only is true; adapters are in the backbone, so set only one of the two"
            )
        return self

    def _loading(self) -> Any:
        from atlas.policies.pi import pi_loading

        return pi_loading

    @property
    def how_vision_stays(self) -> str:
        if self.lora is None:
            return super().how_vision_stays
        return (
            "give its adapters targets only in the language model, such as model.lora={targets: [o_proj, gate_proj, "
            "up_proj, down_proj]}, or leave data.feature_cache out"
        )

    @classmethod
    def training_preset(cls) -> Mapping[str, Any]:
        """LeRobot's optimizer and schedule for pi0 and pi0.5."""
        return {
            "learning_rate": 2.5e-5,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "warmup_steps": 1000,
            "schedule": "cosine_from_start",
            "final_learning_rate": 2.5e-6,
            "decay_steps": 30_000,
            "ema_decay": 0.0,
        }

    def memory_advice(self) -> Sequence[str]:
        if self.lora is None and not self.train_expert_only:
            return (
                "model.lora={rank: 16}: freezes the backbone and trains adapters in it",
                "model.train_expert_only=true: freezes the backbone",
            )
        return () if self.precision == "bfloat16" else ("model.precision=bfloat16, for the frozen weights",)


class Pi0Config(PiConfig):
    """pi0: the state is a token of the expert."""

    type: Literal["pi0"] = "pi0"
    pretrained: str = "hf:lerobot/pi0_base"


class Pi05Config(PiConfig):
    """pi0.5: the prompt holds the state, and time enters through the expert's norms."""

    type: Literal["pi05"] = "pi05"
    pretrained: str = "hf:lerobot/pi05_base"
