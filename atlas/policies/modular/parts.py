"""The parts of a modular policy by name: their sections of the config, each of which builds its part.

Another package adds a part in the groups `atlas.vision_encoders`, `atlas.language_encoders`, `atlas.fusions` and
`atlas.heads`: a section derived from the one of its kind here, with the part's name as the default of `name`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from atlas.config.chosen_section import Chosen
from atlas.config.section import Layers, Probability, Section, Size, UserPath, Weight, check_heads
from atlas.policies.modular.vision_encoders.vision_sections import VISION_ENCODERS, VisionSection
from atlas.system.plugins import PluginTable

if TYPE_CHECKING:
    from atlas.policies.modular.action_heads.head_contract import ActionHead
    from atlas.policies.modular.fusion import Fusion
    from atlas.policies.modular.language_encoders.language_contract import LanguageEncoder
    from atlas.types import ActionSpec

LANGUAGE_KEY = "model.language.pretrained"  # the setting that names weights


# ---- language --------------------------------------------------------------------------------------------


class LanguageSection(Section):
    """The members that every language encoder's section has."""

    name: str

    def build(self, source: Path | None = None, read_weights: bool = True) -> LanguageEncoder:
        """The encoder: B instructions to LanguageTokens of `dim` numbers each.

        A pretrained one is read from `source`, if given, instead of where the section says; without read_weights its
        modules are built but its weights are not read. Raises InputError if there is nothing to read.
        """
        raise NotImplementedError(f"{type(self).__name__} has no build")

    @property
    def rate_factor(self) -> float:
        """The factor of training.learning_rate for its weights."""
        return 1.0

    def check_pretrained(self) -> None:
        """See ModelConfig."""

    def memory_advice(self) -> Sequence[str]:
        """See ModelConfig."""
        return ()


class BytesLanguageConfig(LanguageSection):
    """A small transformer over the instruction's bytes, trained from scratch."""

    name: Literal["bytes"] = "bytes"
    dim: Size = 64
    layers: Layers = 2
    heads: Size = 4
    max_length: Size = 128  # bytes and an end token; longer instructions are cut off, with a warning

    _heads_fit = model_validator(mode="after")(check_heads)

    def build(self, source: Path | None = None, read_weights: bool = True) -> LanguageEncoder:
        from atlas.policies.modular.language_encoders.bytes_language import BytesLanguageEncoder

        return BytesLanguageEncoder(self)


class HuggingFaceLanguageConfig(LanguageSection):
    """A pretrained text encoder (T5, CLIP, SigLIP, BERT, Qwen, Llama ...), whose width is read from its own config."""

    name: Literal["huggingface"] = "huggingface"
    pretrained: UserPath  # a folder, or a name on the Hugging Face hub, such as google-t5/t5-small
    freeze: bool = True  # each instruction is then encoded once
    learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1  # of training.learning_rate, if it is not frozen
    max_length: Annotated[int, Field(ge=4, le=65536)] = 128  # tokens; longer ones are cut off, with a warning

    def build(self, source: Path | None = None, read_weights: bool = True) -> LanguageEncoder:
        from atlas.policies.modular.language_encoders.huggingface_language import HuggingFaceLanguageEncoder

        return HuggingFaceLanguageEncoder(self, source, read_weights)

    @property
    def rate_factor(self) -> float:
        return 1.0 if self.freeze else self.learning_rate_factor

    def check_pretrained(self) -> None:
        from atlas.policies.huggingface_folder import read_tokenizer
        from atlas.policies.modular.language_encoders.huggingface_text import TextTower, find_text_model

        name = f"'{self.pretrained}'"
        folder = find_text_model(self.pretrained, weights=True)
        TextTower.find(folder, name)
        read_tokenizer(folder, name, LANGUAGE_KEY)

    def memory_advice(self) -> Sequence[str]:
        return () if self.freeze else ("model.language.freeze=true",)


class NoLanguageConfig(LanguageSection):
    """None, for a world with a single task."""

    name: Literal["none"] = "none"

    def build(self, source: Path | None = None, read_weights: bool = True) -> LanguageEncoder:
        from atlas.policies.modular.language_encoders.language_contract import NoLanguage

        return NoLanguage()


LANGUAGE_ENCODERS: PluginTable[type[LanguageSection]] = PluginTable(
    "atlas.language_encoders",
    {"bytes": BytesLanguageConfig, "huggingface": HuggingFaceLanguageConfig, "none": NoLanguageConfig},
)


# ---- fusion ----------------------------------------------------------------------------------------------


class FusionSection(Section):
    """The members that every fusion's section has."""

    name: str
    dim: Size = 128  # of its tokens, one per action

    def build(self, horizon: int, vision_dim: int, language_dim: int, proprio_dim: int) -> Fusion:
        """The fusion: vision tokens [B, N, vision_dim], LanguageTokens of language_dim and proprio [B, proprio_dim] to
        [B, horizon, dim]."""
        raise NotImplementedError(f"{type(self).__name__} has no build")


class QueryFusionConfig(FusionSection):
    """Action queries that attend to the tokens of vision, language and proprio."""

    name: Literal["queries"] = "queries"
    layers: Layers = 1
    heads: Size = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Probability = 0.0

    _heads_fit = model_validator(mode="after")(check_heads)

    def build(self, horizon: int, vision_dim: int, language_dim: int, proprio_dim: int) -> Fusion:
        from atlas.policies.modular.fusion import QueryFusion

        return QueryFusion(self, horizon, vision_dim, language_dim, proprio_dim)


class BidirectionalFusionConfig(FusionSection):
    """Like `queries`, after layers in which the tokens of vision and language attend to each other."""

    name: Literal["bidirectional"] = "bidirectional"
    exchange_layers: Layers = 1
    layers: Layers = 1
    heads: Size = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Probability = 0.0

    _heads_fit = model_validator(mode="after")(check_heads)

    def build(self, horizon: int, vision_dim: int, language_dim: int, proprio_dim: int) -> Fusion:
        from atlas.policies.modular.fusion import BidirectionalFusion

        return BidirectionalFusion(self, horizon, vision_dim, language_dim, proprio_dim)


class MLPFusionConfig(FusionSection):
    """A plain network over proprio and the means of the other tokens: fast, for policies from state alone."""

    name: Literal["mlp"] = "mlp"
    dim: Size = 256
    layers: Layers = 2

    def build(self, horizon: int, vision_dim: int, language_dim: int, proprio_dim: int) -> Fusion:
        from atlas.policies.modular.fusion import MLPFusion

        return MLPFusion(self, horizon, vision_dim, language_dim, proprio_dim)


FUSIONS: PluginTable[type[FusionSection]] = PluginTable(
    "atlas.fusions", {"queries": QueryFusionConfig, "bidirectional": BidirectionalFusionConfig, "mlp": MLPFusionConfig}
)


# ---- heads -----------------------------------------------------------------------------------------------


class HeadSection(Section):
    """The members that every action head's section has."""

    name: str

    def build(self, dim: int, spec: ActionSpec, horizon: int) -> ActionHead:
        """The head over fused tokens [B, horizon, dim]; see ActionHead."""
        raise NotImplementedError(f"{type(self).__name__} has no build")

    def loss_terms(self, spec: ActionSpec) -> tuple[str, ...]:
        """The names of the terms of its loss."""
        return ("pose_loss", *(("gripper_loss",) if spec.grippers else ()))


class RegressionHeadConfig(HeadSection):
    """The whole chunk at once: the pose and continuous grippers by regression, other grippers as logits."""

    name: Literal["regression"] = "regression"
    pose_loss: Literal["l1", "mse", "smooth_l1"] = "l1"
    pose_weight: Weight = 1.0
    gripper_weight: Weight = 0.1

    def build(self, dim: int, spec: ActionSpec, horizon: int) -> ActionHead:
        from atlas.policies.modular.action_heads.regression import RegressionHead

        return RegressionHead(self, dim, spec)


class FlowMatchingHeadConfig(HeadSection):
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

    def build(self, dim: int, spec: ActionSpec, horizon: int) -> ActionHead:
        from atlas.policies.modular.action_heads.flow_matching import FlowMatchingHead

        return FlowMatchingHead(self, dim, spec, horizon)


class GaussianHeadConfig(HeadSection):
    """The whole chunk at once as Gaussians, which learning by reward draws from (`atlas learn sac`, `ppo`, `grpo`)."""

    name: Literal["gaussian"] = "gaussian"
    squashed: bool = True  # by a hyperbolic tangent, so that actions lie within their scaled range
    deviation: Literal["state", "free"] = "state"  # follows from what is seen, or is one number per dimension
    log_std: float = 0.0  # that a free deviation begins with
    lowest: float = -5.0  # of the deviation's logarithm
    highest: float = 2.0
    pose_weight: Weight = 1.0
    gripper_weight: Weight = 0.1

    def build(self, dim: int, spec: ActionSpec, horizon: int) -> ActionHead:
        from atlas.policies.modular.action_heads.gaussian import GaussianHead

        return GaussianHead(self, dim, spec)


HEADS: PluginTable[type[HeadSection]] = PluginTable(
    "atlas.heads",
    {"regression": RegressionHeadConfig, "flow_matching": FlowMatchingHeadConfig, "gaussian": GaussianHeadConfig},
)

# ---- as fields of a section ------------------------------------------------------------------------------

Vision = Annotated[VisionSection, Chosen(VISION_ENCODERS, VisionSection, "name", "keypoints")]
Language = Annotated[LanguageSection, Chosen(LANGUAGE_ENCODERS, LanguageSection, "name", "bytes")]
Fused = Annotated[FusionSection, Chosen(FUSIONS, FusionSection, "name", "queries")]
Head = Annotated[HeadSection, Chosen(HEADS, HeadSection, "name", "regression")]
