"""The contract of heads for policies on image-text models, and what they read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from atlas.policies.action_distribution import Noise, NoisyActions
from atlas.policies.modular.action_heads.regression import RegressionHead
from atlas.types import LossTerms


class HiddenStates(NamedTuple):
    """The language part's output for a batch, with T positions per sample, some of which may be padding."""

    layers: Sequence[torch.Tensor]  # [B, T, width] after each layer; the last one has passed the model's final norm
    is_prompt: torch.Tensor  # bool [B, T]: images and words
    extra_slots: torch.Tensor  # int64 [B, E], the places of the head's own tokens
    memory: Sequence[tuple[torch.Tensor, torch.Tensor]]  # each layer's keys and values [B, KV, T, head_dim], if asked
    next_position: torch.Tensor  # int64 [B], the position that follows the prompt and the head's tokens

    def extras(self, layer: int) -> torch.Tensor:
        """The head's own tokens after a layer, [B, E, width]."""
        states = self.layers[layer]
        return states.gather(1, self.extra_slots.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


@dataclass(frozen=True)
class LanguageSizes:
    """The sizes of a language part that heads use."""

    width: int
    layers: int
    heads: int  # of queries
    key_heads: int  # of keys and values
    head_dim: int
    rope_theta: float | None  # None: it has no rotary positions, and an expert cannot read its keys and values


class VLMHead(nn.Module):
    """A head leads from hidden states to actions, and defines the loss. It takes and gives normalised actions, whose
    grippers go from -1 (open) to 1 (closed).

    Random numbers follow from `key`, int64 [B], one per sample; in `sample` a generator takes precedence over the key.
    """

    extra_tokens: int  # E, after the instruction
    reads_memory = False  # whether it needs `HiddenStates.memory`

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """See `Policy.blocks`."""
        return ()

    @abstractmethod
    def extras(self, proprio: torch.Tensor) -> torch.Tensor:
        """The tokens [B, E, width] that the model reads after the instruction; proprio: [B, P], scaled."""

    @abstractmethod
    def forward(
        self,
        states: HiddenStates,
        proprio: torch.Tensor,
        actions: torch.Tensor,
        is_pad: torch.Tensor,
        key: torch.Tensor | None = None,
    ) -> LossTerms:
        """proprio: [B, P]; actions: [B, H, A]; is_pad: bool [B, H]. The losses are means over unpadded steps."""

    @abstractmethod
    def sample(
        self,
        states: HiddenStates,
        proprio: torch.Tensor,
        key: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Normalised actions float32 [B, H, A]."""


class RegressingHead(VLMHead):
    """A head that turns the hidden states into one token per action, and each token into its action."""

    actions: RegressionHead

    @abstractmethod
    def fuse(self, states: HiddenStates, proprio: torch.Tensor) -> torch.Tensor:
        """One token per action, [B, H, dim]."""

    def forward(
        self,
        states: HiddenStates,
        proprio: torch.Tensor,
        actions: torch.Tensor,
        is_pad: torch.Tensor,
        key: torch.Tensor | None = None,
    ) -> LossTerms:
        terms: LossTerms = self.actions(self.fuse(states, proprio), actions, is_pad)
        return terms

    def sample(
        self,
        states: HiddenStates,
        proprio: torch.Tensor,
        key: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        return self.actions.sample(self.fuse(states, proprio))

    def noisy(self, states: HiddenStates, proprio: torch.Tensor, noise: Noise) -> NoisyActions:
        """The noisy normalised actions. Raises InputError for a gripper that is not either open or closed."""
        return self.actions.noisy(self.fuse(states, proprio), noise)
