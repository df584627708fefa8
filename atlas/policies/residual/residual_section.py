"""`model` of the type `residual`, which `atlas learn sac --residual` makes from another policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from atlas.config.model_section import MODEL, ModelConfig
from atlas.config.section import Layers, Size

if TYPE_CHECKING:
    from atlas.policies.processor import PolicyProcessor
    from atlas.policies.residual.residual_policy import ResidualPolicy
    from atlas.types import ActionSpec


class ResidualConfig(ModelConfig):
    """A policy whose weights are frozen, and a network that corrects its actions within narrow bounds."""

    clips_proprio = True

    type: Literal["residual"] = "residual"
    base: Annotated[Any, BeforeValidator(MODEL.validate)]  # the policy that is corrected, a section like this one
    execute: Size  # how many actions of each chunk are executed, and share the correction
    scale: Annotated[float, Field(gt=0, le=1)] = 0.1  # the largest correction of a number, scaled
    width: Size = 256  # of the network's layers
    layers: Layers = 2

    def build(
        self, processor: PolicyProcessor, folder: Path | None = None, read_weights: bool = True
    ) -> ResidualPolicy:
        from atlas.policies.residual.residual_policy import ResidualPolicy

        return ResidualPolicy(self, processor, self.base.build(processor, folder, read_weights))

    @property
    def label(self) -> str:
        return f"residual-{self.base.label}"

    def describe(self) -> str:
        return f"a correction of at most {self.scale:g} of a frozen policy: {self.base.describe()}"

    def loss_terms(self, spec: ActionSpec) -> tuple[str, ...]:
        return ("pose_loss", *(("gripper_loss",) if spec.grippers else ()))

    @property
    def reads_images(self) -> bool:
        return self.base.reads_images

    def image_fit(self, folder: Path | None = None) -> Any:
        return self.base.image_fit(folder)

    def check_pretrained(self, folder: Path | None = None) -> None:
        self.base.check_pretrained(folder)

    def memory_advice(self) -> Sequence[str]:
        return self.base.memory_advice()
