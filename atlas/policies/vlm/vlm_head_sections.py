"""The heads of policies on image-text models by name: their config sections, each of which builds its head.

Another package adds a head in the entry-point group `atlas.vlm_heads`: a section derived from `VLMHeadSection`, with
its name as the default of `name`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from atlas.config.section import Layers, Section, Size, Weight, check_heads
from atlas.policies.modular.parts import RegressionHeadConfig
from atlas.system.plugins import PluginTable

if TYPE_CHECKING:
    from atlas.policies.vlm.vlm_head_contract import LanguageSizes, VLMHead
    from atlas.types import ActionSpec


class VLMHeadSection(Section):
    """The base of every head's section."""

    name: str

    def build(self, model: LanguageSizes, spec: ActionSpec, horizon: int, proprio_dim: int) -> VLMHead:
        """The head for a language part of these sizes; see VLMHead. Raises InputError."""
        raise NotImplementedError(f"{type(self).__name__} has no build")

    def loss_terms(self, spec: ActionSpec) -> tuple[str, ...]:
        """The names of the terms of its loss."""
        return ("pose_loss", *(("gripper_loss",) if spec.grippers else ()))


class RegressingSection(VLMHeadSection):
    """The common part of heads that regress the whole chunk at once."""

    pose_loss: Literal["l1", "mse", "smooth_l1"] = "l1"
    pose_weight: Weight = 1.0
    gripper_weight: Weight = 0.1

    @property
    def regression(self) -> RegressionHeadConfig:
        """The config of the last step, from one token per action to the action."""
        return RegressionHeadConfig(
            pose_loss=self.pose_loss, pose_weight=self.pose_weight, gripper_weight=self.gripper_weight
        )


class OFTHeadConfig(RegressingSection):
    """One query per action after the instruction; an MLP turns each query's hidden state into the action."""

    name: Literal["vlm-oft"] = "vlm-oft"
    dim: Size = 512  # of the MLP
    blocks: Layers = 2

    def build(self, model: LanguageSizes, spec: ActionSpec, horizon: int, proprio_dim: int) -> VLMHead:
        from atlas.policies.vlm.oft_head import OFTHead

        return OFTHead(self, model.width, spec, horizon, proprio_dim)


class AdapterHeadConfig(RegressingSection):
    """A small transformer over the chunk, whose layers (bridges) read the hidden states of the model's layers."""

    name: Literal["vlm-adapter"] = "vlm-adapter"
    queries: Annotated[int, Field(ge=0, le=4096)] = 64  # after the instruction; 0: bridges read the prompt and proprio
    dim: Size = 512
    layers: Layers | None = None  # bridges, evenly spread over the model's layers; null: one for each of them
    heads: Size = 8
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0

    _heads_fit = model_validator(mode="after")(check_heads)

    def build(self, model: LanguageSizes, spec: ActionSpec, horizon: int, proprio_dim: int) -> VLMHead:
        from atlas.policies.vlm.adapter_head import AdapterHead

        return AdapterHead(self, model.width, model.layers, spec, horizon, proprio_dim)


class ExpertHeadConfig(VLMHeadSection):
    """A small transformer whose layers read the keys and values of the model's layers, trained by flow matching."""

    name: Literal["vlm-expert"] = "vlm-expert"
    dim: Size = 512
    mlp_dim: Size = 2048
    heads: Size | None = None  # of queries; null: as many as in the model
    steps: Size = 10  # of Euler's method, for sampling actions
    pose_weight: Weight = 1.0
    gripper_weight: Weight = 1.0

    def build(self, model: LanguageSizes, spec: ActionSpec, horizon: int, proprio_dim: int) -> VLMHead:
        from atlas.policies.vlm.expert_head import ExpertHead

        return ExpertHead(self, model, spec, horizon, proprio_dim)


VLM_HEADS: PluginTable[type[VLMHeadSection]] = PluginTable(
    "atlas.vlm_heads", {"vlm-oft": OFTHeadConfig, "vlm-adapter": AdapterHeadConfig, "vlm-expert": ExpertHeadConfig}
)
