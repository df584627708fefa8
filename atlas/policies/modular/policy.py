"""A policy made of parts: vision, language, fusion and an action head, each of them chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from atlas.errors import InputError
from atlas.policies.action_distribution import FlowActions, GaussianActions, Noise, NoisyActions
from atlas.policies.attention import Attention
from atlas.policies.base import InstructionMemory, Policy
from atlas.policies.modular.action_heads.flow_matching import FlowMatchingHead
from atlas.policies.modular.action_heads.gaussian import GaussianHead
from atlas.policies.modular.action_heads.head_contract import GenerativeHead
from atlas.policies.modular.action_heads.regression import RegressionHead
from atlas.policies.modular.language_encoders.language_contract import LanguageEncoder
from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.modular.modular_section import ModularConfig
from atlas.policies.modular.parts import LanguageSection
from atlas.policies.modular.policy_graph import PolicyGraph, fusion_inputs
from atlas.policies.modular.unused_biases import hold_key_biases
from atlas.policies.modular.vision_encoders.spatial_alignment import Alignment
from atlas.policies.modular.vision_encoders.vision_contract import VisionEncoder
from atlas.policies.modular.vision_encoders.vision_sections import EncoderNeeds, VisionSection
from atlas.policies.pretrained_weights import FrozenWeights
from atlas.policies.processor import PolicyProcessor
from atlas.types import Batch, LossTerms

# Where a saved policy that includes its frozen parts stores them.
FROZEN_FILES = {"vision": ("vision.safetensors", "vision"), "language": ("language",)}


class ModularPolicy(Policy):
    """Images, an instruction and proprio to a chunk of H actions."""

    config: ModularConfig

    def __init__(
        self,
        config: ModularConfig,
        processor: PolicyProcessor,
        folder: Path | None = None,
        read_weights: bool = True,
    ) -> None:
        """See `ModelConfig.build`."""
        super().__init__(config, processor)
        spec, horizon = processor.action_spec, processor.action_horizon
        if config.vision.reads_images != bool(processor.cameras):
            raise InputError(
                f"A policy with model.vision.name {config.vision.name} does not fit the cameras of its processor.json, "
                f"{list(processor.cameras)}."
            )
        sources = _copies(folder) if folder is not None else {}
        self.language = config.language.build(sources.get("language"), read_weights)
        self.vision = config.vision.build(
            EncoderNeeds(
                views=processor.views,
                image_size=processor.image_size,
                dim=config.fusion.dim,
                language_dim=self.language.dim,
                source=sources.get("vision"),
                read_weights=read_weights,
            )
        )
        self.fusion = config.fusion.build(horizon, self.vision.dim, self.language.dim, processor.proprio_width)
        self.head = config.head.build(config.fusion.dim, spec, horizon)
        self.alignment = Alignment(config.alignment, self.vision.dim) if config.alignment is not None else None
        self.action_scaler, self.proprio_scaler = processor.action_scaler(), processor.proprio_scaler()
        self._trained = {name for name, p in self.named_parameters() if p.requires_grad}
        hold_key_biases(self)

    # ---- acting and learning -----------------------------------------------------------------------------

    def forward(self, batch: Batch) -> LossTerms:
        """The losses of a batch with actions; images float in [0, 1] or uint8, or a frozen encoder's features."""
        return self._losses(batch, *self._look(batch))

    @torch.no_grad()
    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions float32 [B, H, A] in the ActionSpec's units, grippers between open and closed.

        A generative head draws its noise from `generator`, otherwise from the batch's keys, otherwise from torch's own
        generator.
        """
        return self._actions(batch, self._look(batch)[1], generator)

    @property
    def follows(self) -> bool:
        return isinstance(self.head, GenerativeHead)

    @torch.no_grad()
    def sample_following(self, batch: Batch, previous: torch.Tensor, delay: int) -> torch.Tensor:
        """See `FollowsChunks`."""
        assert isinstance(self.head, GenerativeHead)
        learned = self.processor.to_learn(previous, batch.proprio)
        rest = self.action_scaler.normalize(learned, batch.source)
        chunk = self.head.sample_following(self._look(batch)[1], rest, delay, batch.key)
        return self.processor.to_execute(self.action_scaler.denormalize(chunk, batch.source), batch.proprio)

    @torch.no_grad()
    def losses_and_sample(self, batch: Batch) -> tuple[LossTerms, torch.Tensor]:
        """The results of `forward` and `sample`, with a single look at the images."""
        seen, fused = self._look(batch)
        return self._losses(batch, seen, fused), self._actions(batch, fused, None)

    def _look(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Vision tokens [B, N, D], and one fused token per action, [B, H, dim]."""
        language = self.language(batch.instruction)
        seen = self._seen(batch, language)
        return seen, self.fusion(*fusion_inputs(self, seen, language, batch.proprio, batch.source))

    def _seen(self, batch: Batch, language: LanguageTokens) -> torch.Tensor:
        """Vision tokens [B, N, D]."""
        if batch.features is not None:
            return batch.features
        looks = bool(self.processor.cameras)
        images = batch.unit_images() if looks else batch.proprio.new_zeros(len(batch), 0, 3, 1, 1)
        tokens: torch.Tensor = self.vision(images, language)
        return tokens

    @property
    def acts_at_random(self) -> bool:
        return isinstance(self.head, GaussianHead)

    def action_distribution(self, batch: Batch) -> GaussianActions:
        """See `ActsAtRandom`; for the head `gaussian`."""
        assert isinstance(self.head, GaussianHead)
        return self.head.distribution(self._look(batch)[1])

    @property
    def takes_noise(self) -> bool:
        return isinstance(self.head, RegressionHead)

    def noisy_distribution(self, batch: Batch, noise: Noise) -> NoisyActions:
        """See `TakesNoise`; for the head `regression`."""
        assert isinstance(self.head, RegressionHead)
        return self.head.noisy(self._look(batch)[1], noise)

    @property
    def acts_by_flow(self) -> bool:
        return isinstance(self.head, FlowMatchingHead)

    def flow_distribution(self, batch: Batch, noise: float) -> FlowActions:
        """See `ActsByFlow`; for the head `flow_matching`."""
        assert isinstance(self.head, FlowMatchingHead)
        return self.head.distribution(self._look(batch)[1], noise)

    def features_and_sample(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `GivesFeatures`: the fused tokens."""
        fused = self._look(batch)[1]
        return fused.float(), self._actions(batch, fused, generator)

    @property
    def feature_dim(self) -> int:
        return self.config.fusion.dim

    def _losses(self, batch: Batch, seen: torch.Tensor, fused: torch.Tensor) -> LossTerms:
        assert batch.actions is not None and batch.action_is_pad is not None
        learned = self.processor.to_learn(batch.actions, batch.proprio)
        actions = self.action_scaler.normalize(learned, batch.source)
        terms: LossTerms = self.head(fused, actions, batch.action_is_pad, batch.key)
        if self.alignment is not None and self.alignment.teacher is not None:
            aligned = self.alignment(self.vision.patch_grid(seen), batch.unit_images())
            terms.loss = terms.loss + self.alignment.weight * aligned
            terms.terms["alignment_loss"] = aligned
        return terms

    def _actions(self, batch: Batch, fused: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        given = self.action_scaler.denormalize(self.head.sample(fused, batch.key, generator), batch.source)
        return self.processor.to_execute(given, batch.proprio)

    def blocks(self) -> list[nn.Module]:
        """Blocks without a trainable parameter are left out, as no gradient flows through them."""
        parts = (self.language, self.vision, self.fusion, self.head)
        blocks = [block for part in parts for block in part.blocks]
        return [block for block in blocks if any(p.requires_grad for p in block.parameters())]

    @property
    def loss_names(self) -> tuple[str, ...]:
        taught = self.alignment is not None and self.alignment.teacher is not None
        names = ("loss", *self.config.loss_terms(self.processor.action_spec))
        return names if taught else tuple(name for name in names if name != "alignment_loss")

    def learning_rate_factor(self, name: str) -> float:
        """Pretrained weights may learn more slowly."""
        sections: dict[str, VisionSection | LanguageSection]
        sections = {"vision": self.config.vision, "language": self.config.language}
        section = sections.get(name.split(".", 1)[0])
        return section.rate_factor if section is not None else 1.0

    def parts(self) -> dict[str, nn.Module]:
        return {"vision": self.vision, "language": self.language, "fusion": self.fusion, "head": self.head}

    def as_graph(self, instructions: Sequence[str], source: int) -> tuple[nn.Module, int]:
        """See `HasGraph`."""
        head = self.head
        return PolicyGraph(self, instructions, source).eval(), head.noise_dim if isinstance(head, GenerativeHead) else 0

    # ---- what is saved -----------------------------------------------------------------------------------

    @property
    def frozen(self) -> dict[str, FrozenWeights]:
        parts = {"vision": self.vision.frozen, "language": self.language.frozen}
        return {name: weights for name, weights in parts.items() if weights is not None}

    def is_own(self, name: str) -> bool:
        """Adapters of a frozen part are; the alignment's teacher is not."""
        left_out = (*(f"{part}." for part in self.frozen), "alignment.teacher.")
        return name in self._trained or not name.startswith(left_out)

    def save_frozen(self, part: str, directory: Path) -> None:
        saved: VisionEncoder | LanguageEncoder = self.vision if part == "vision" else self.language
        saved.save_source(directory / saved.copy_name)

    # ---- what a training makes use of --------------------------------------------------------------------

    def load_teacher(self, read_weights: bool = True) -> None:
        """The alignment's, if there is one."""
        if self.alignment is not None:
            self.alignment.load_teacher(read_weights)

    @property
    def instruction_memory(self) -> InstructionMemory | None:
        frozen = self.language.frozen is not None
        return self.language if frozen and isinstance(self.language, InstructionMemory) else None

    def cached_encoder_hash(self) -> str:
        return self.frozen["vision"].sha256

    def image_features(self, batch: Batch) -> torch.Tensor:
        """The mean of a sample's vision tokens; of a policy that does not look, its scaled proprio."""
        if not self.processor.cameras:
            return self.proprio_scaler.normalize(batch.proprio, batch.source)
        return self._seen(batch, self.language(batch.instruction)).float().mean(1)

    @torch.no_grad()
    def attention(self, batch: Batch) -> Attention | None:
        """The keypoints of an encoder that has such; otherwise how much the queries read from each patch."""
        if not self.processor.cameras:
            return None
        language, images = self.language(batch.instruction), batch.unit_images()
        if (points := self.vision.keypoints(images, language)) is not None:
            return Attention(points=points)
        if type(self.vision).patch_grid is VisionEncoder.patch_grid:
            return None
        seen = self.vision(images, language)
        weights = self.fusion.attention(*fusion_inputs(self, seen, language, batch.proprio, batch.source))  # [B, N]
        if weights is None:
            return None
        return Attention(maps=self.vision.patch_grid(weights.unsqueeze(-1)).squeeze(-1))

    @torch.no_grad()
    def count_words(self, instructions: Sequence[str]) -> list[int]:
        return (~self.language(instructions).is_pad).sum(1).tolist()

    @torch.no_grad()
    def count_tokens(self, batch: Batch) -> dict[str, int]:
        language = self.language(batch.instruction)
        seen = self._seen(batch, language)
        return {"vision": seen.shape[1], "language": language.tokens.shape[1]}


def _copies(folder: Path) -> dict[str, Path]:
    """The frozen parts that a saved policy's folder has copies of."""
    found = ((part, folder / name) for part, names in FROZEN_FILES.items() for name in names)
    return {part: path for part, path in found if path.exists()}
