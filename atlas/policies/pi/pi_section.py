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
    """What pi0's and pi0.5's sections have in common; by default what LeRobot trains is trained: all of it."""

    sizes: BackboneSizes | None = None  # null: of the folder's backbone.json, else those that its config.json names
    # What is trained; null: as config.json has it, which in published policies is everything
    train_expert_only: bool | None = None
    freeze_vision_encoder: bool | None = None
    lora: LoRAConfig | None = None  # on the backbone, which is else frozen; the expert is trained whole
    # Of training.learning_rate, for weights of the backbone that are trained
    backbone_learning_rate_factor: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _one_way_to_train(self) -> PiConfig:
        if self.lora is not None and self.train_expert_only:
            raise ValueError(
                "lora is set and train_expert_only is true; adapters are of the backbone, so set one of the two"
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
            "give its adapters targets in the language model alone, such as model.lora={targets: [o_proj, gate_proj, "
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
                "model.lora={rank: 16}: the backbone is frozen, and adapters in it are trained",
                "model.train_expert_only=true: the backbone stays as it is",
            )
        return (
            () if self.precision == "bfloat16" else ("model.precision=bfloat16, for the weights that are not trained",)
        )


class Pi0Config(PiConfig):
    """pi0: the state is a token of the expert's."""

    type: Literal["pi0"] = "pi0"
    pretrained: str = "hf:lerobot/pi0_base"


class Pi05Config(PiConfig):
    """pi0.5: the state is written into the prompt, and time goes into the expert's norms."""

    type: Literal["pi05"] = "pi05"
    pretrained: str = "hf:lerobot/pi05_base"
