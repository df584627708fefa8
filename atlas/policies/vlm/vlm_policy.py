"""A policy on an image-text model: its image part, its language part, and a head that reads the hidden states."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from atlas.errors import InputError
from atlas.policies.action_distribution import FlowActions, Noise, NoisyActions
from atlas.policies.attention import Attention, after_one_step, by_gradient
from atlas.policies.base import Policy
from atlas.policies.modular.unused_biases import hold_key_biases
from atlas.policies.modular.vision_encoders.spatial_alignment import Alignment
from atlas.policies.pretrained_weights import FrozenWeights
from atlas.policies.processor import PolicyProcessor
from atlas.policies.vlm.backbone import Backbone
from atlas.policies.vlm.expert_head import ExpertHead
from atlas.policies.vlm.vlm_head_contract import HiddenStates, RegressingHead
from atlas.policies.vlm.vlm_section import TEACHER_KEY, VLMConfig
from atlas.types import Batch, LossTerms

_COPY = "backbone"  # the folder, in a saved policy, with a copy of the model, if it includes its frozen parts


class VLMPolicy(Policy):
    """Images, an instruction and proprio to a chunk of H actions."""

    config: VLMConfig

    def __init__(
        self,
        config: VLMConfig,
        processor: PolicyProcessor,
        folder: Path | None = None,
        read_weights: bool = True,
    ) -> None:
        """See `ModelConfig.build`."""
        super().__init__(config, processor)
        copy = folder / _COPY if folder is not None and (folder / _COPY).exists() else None
        self._backbone = Backbone.find(config.backbone, copy, read_weights)
        self.vision, self.language, self._prompts = self._backbone.parts(processor.image_size, read_weights)
        spec, layers = processor.action_spec, len(self.language.layers)
        self.head = config.head.build(self.language.sizes, spec, processor.action_horizon, processor.proprio_width)
        # The head's tokens have a standard deviation of 1; this scales them to that of the model's words.
        words = self.language.model.get_input_embeddings()
        some = torch.arange(0, words.num_embeddings, max(1, words.num_embeddings // 1024))
        self.token_scale = nn.Buffer(words(some).float().std().detach())
        self._aligned_layer, self.alignment = 0, None
        if config.alignment is not None:
            self._aligned_layer = inner_layer(config.alignment.layer, layers)
            self.alignment = Alignment(config.alignment, self.language.width, TEACHER_KEY)
        if self.head.reads_memory and self._aligned_layer < layers:
            self.language.train_keys_alone()
        self.action_scaler, self.proprio_scaler = processor.action_scaler(), processor.proprio_scaler()
        self._trained = {name for name, p in self.named_parameters() if p.requires_grad}
        hold_key_biases(self)

    # ---- acting and learning -----------------------------------------------------------------------------

    def forward(self, batch: Batch) -> LossTerms:
        """The losses of a batch with actions; images float in [0, 1] or uint8, or a frozen image part's features."""
        return self._losses(batch, *self._read(batch))

    @torch.no_grad()
    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions float32 [B, H, A] in the ActionSpec's units, grippers between open and closed.

        A generative head draws its noise from `generator`, else from the batch's keys, else from torch's generator.
        """
        return self._actions(batch, *self._read(batch), generator)

    @torch.no_grad()
    def losses_and_sample(self, batch: Batch) -> tuple[LossTerms, torch.Tensor]:
        """The results of `forward` and `sample`, from one pass over the images."""
        states, proprio = self._read(batch)
        return self._losses(batch, states, proprio), self._actions(batch, states, proprio, None)

    def attention(self, batch: Batch) -> Attention:
        """See `ShowsAttention`: which patches the chunk depends on; of a generative head, the chunk at the end of a
        single step from the noise."""

        def chunk(batch: Batch) -> torch.Tensor:
            read = self._read(batch)
            if not isinstance(self.head, ExpertHead):
                return self.head.sample(*read, batch.key)
            return after_one_step(self.head.distribution(*read, noise=0.0), batch.key)

        return by_gradient(chunk, batch)

    @property
    def takes_noise(self) -> bool:
        return isinstance(self.head, RegressingHead)

    def noisy_distribution(self, batch: Batch, noise: Noise) -> NoisyActions:
        """See `TakesNoise`; for the heads `vlm-oft` and `vlm-adapter`."""
        assert isinstance(self.head, RegressingHead)
        return self.head.noisy(*self._read(batch), noise)

    @property
    def acts_by_flow(self) -> bool:
        return isinstance(self.head, ExpertHead)

    def flow_distribution(self, batch: Batch, noise: float) -> FlowActions:
        """See `ActsByFlow`; for the head `vlm-expert`."""
        assert isinstance(self.head, ExpertHead)
        return self.head.distribution(*self._read(batch), noise)

    def _read(self, batch: Batch) -> tuple[HiddenStates, torch.Tensor]:
        """The language part's hidden states, and scaled proprio [B, P]."""
        seen = self._see(batch)
        proprio = self.proprio_scaler.normalize(batch.proprio, batch.source)
        prompts = self._prompts.batch(batch.instruction, self._views, self.head.extra_tokens, seen.device)
        extras = self.head.extras(proprio) * self.token_scale
        return self.language(prompts, seen, extras, self.head.reads_memory), proprio

    def _see(self, batch: Batch) -> torch.Tensor:
        """The images' tokens [B, V * N, D]."""
        if batch.features is not None:
            return batch.features
        if batch.images is None or batch.images.shape[1] == 0:
            raise InputError("A policy of the type vlm needs images, or features of its frozen image part.")
        tokens: torch.Tensor = self.vision(batch.unit_images())
        return tokens

    def _losses(self, batch: Batch, states: HiddenStates, proprio: torch.Tensor) -> LossTerms:
        assert batch.actions is not None and batch.action_is_pad is not None
        learned = self.processor.to_learn(batch.actions, batch.proprio)
        actions = self.action_scaler.normalize(learned, batch.source)
        terms: LossTerms = self.head(states, proprio, actions, batch.action_is_pad, batch.key)
        if self.alignment is not None and self.alignment.teacher is not None:
            prompts = self._prompts.batch(batch.instruction, self._views, self.head.extra_tokens, proprio.device)
            inner = states.layers[self._aligned_layer - 1]
            seen = inner.gather(1, prompts.image_slots.unsqueeze(-1).expand(-1, -1, inner.shape[-1]))
            grid = self.vision.patch_grid(seen.to(proprio.dtype), self._views)
            aligned = self.alignment(grid, batch.unit_images())
            terms.loss = terms.loss + self.alignment.weight * aligned
            terms.terms["alignment_loss"] = aligned
        return terms

    def _actions(
        self, batch: Batch, states: HiddenStates, proprio: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        sampled = self.head.sample(states, proprio, batch.key, generator)
        return self.processor.to_execute(self.action_scaler.denormalize(sampled, batch.source), batch.proprio)

    @property
    def _views(self) -> int:
        return self.processor.views

    def blocks(self) -> list[nn.Module]:
        """The blocks, without those that have no trainable parameter and that no gradient passes."""
        vision = [block for block in self.vision.blocks if any(p.requires_grad for p in block.parameters())]
        return [*vision, *self.language.blocks, *self.head.blocks]

    @property
    def loss_names(self) -> tuple[str, ...]:
        taught = self.alignment is not None and self.alignment.teacher is not None
        names = ("loss", *self.config.loss_terms(self.processor.action_spec))
        return names if taught else tuple(name for name in names if name != "alignment_loss")

    def learning_rate_factor(self, name: str) -> float:
        """A factor below 1 makes pretrained weights learn more slowly."""
        pretrained = name.startswith(("vision.", "language.")) and not self.config.backbone.freeze
        return self.config.backbone.learning_rate_factor if pretrained else 1.0

    def parts(self) -> dict[str, nn.Module]:
        return {"vision": self.vision, "language": self.language, "head": self.head}

    # ---- saving ------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> dict[str, FrozenWeights]:
        parts = {"vision": self.vision.frozen, "language": self.language.frozen}
        return {name: weights for name, weights in parts.items() if weights is not None}

    def is_own(self, name: str) -> bool:
        """True for the adapters of a frozen part too; false for the alignment's teacher."""
        left_out = (*(f"{part}." for part in self.frozen), "alignment.teacher.")
        return name in self._trained or not name.startswith(left_out)

    def save_frozen(self, part: str, directory: Path) -> None:
        """Save one copy of the model for both parts."""
        if part == next(iter(self.frozen)):
            self._backbone.save_copy(directory / _COPY)

    # ---- for training ------------------------------------------------------------------------------------

    def load_teacher(self, read_weights: bool = True) -> None:
        """Load the alignment's teacher, if there is one."""
        if self.alignment is not None:
            self.alignment.load_teacher(read_weights)

    def cached_encoder_hash(self) -> str:
        return self.frozen["vision"].sha256

    def image_features(self, batch: Batch) -> torch.Tensor:
        """The mean of a sample's image tokens."""
        return self._see(batch).float().mean(1)

    @torch.no_grad()
    def count_tokens(self, batch: Batch) -> dict[str, int]:
        """The number of tokens of the images, and of the longest instruction with the rest of the prompt and the head's
        tokens."""
        prompts = self._prompts.batch(batch.instruction, self._views, self.head.extra_tokens, batch.proprio.device)
        seen = prompts.image_slots.shape[1]
        return {"vision": seen, "language": prompts.ids.shape[1] - seen}


def inner_layer(asked: int | None, layers: int) -> int:
    """The language layer, counted from 1, after which images are aligned. Raises InputError for a missing layer."""
    if asked is not None and asked > layers:
        raise InputError(f"model.alignment.layer is {asked}, but the model has {layers} language layers.")
    return asked or max(1, round(0.75 * layers))
