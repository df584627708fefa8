"""`model` of the type `smolvla`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from atlas.policies.published.published_section import PublishedConfig


class SmolVLAConfig(PublishedConfig):
    """SmolVLA from a LeRobot folder. By default the same weights are trained as in LeRobot."""

    type: Literal["smolvla"] = "smolvla"
    pretrained: str = "hf:lerobot/smolvla_base"
    vlm: str | None = None  # the config of its vision-language model: a folder or a hub name; null: as config.json says
    # Which weights are trained; null: as config.json says, in published policies the expert and the state's projection
    train_expert_only: bool | None = None
    freeze_vision_encoder: bool | None = None
    train_state_proj: bool | None = None

    def _loading(self) -> Any:
        from atlas.policies.smolvla import smolvla_loading

        return smolvla_loading

    @classmethod
    def training_preset(cls) -> Mapping[str, Any]:
        """LeRobot's optimizer and schedule for SmolVLA."""
        return {
            "learning_rate": 1e-4,
            "weight_decay": 1e-10,
            "max_grad_norm": 10.0,
            "warmup_steps": 1000,
            "schedule": "cosine_from_start",
            "final_learning_rate": 2.5e-6,
            "decay_steps": 30_000,
            "ema_decay": 0.0,
        }

    def memory_advice(self) -> Sequence[str]:
        advice = []
        if self.train_expert_only is False:
            advice.append("model.train_expert_only=true: freezes the vision-language model")
        if self.precision != "bfloat16":
            advice.append("model.precision=bfloat16, for the frozen weights")
        return advice
