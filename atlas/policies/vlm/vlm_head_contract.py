"""What a head of a policy on an image-text model is, and what it reads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from atlas.policies.modular.action_heads.regression import RegressionHead
from atlas.types import LossTerms


class HiddenStates(NamedTuple):
    """What the language part makes of a batch: T positions a sample, of which some may not be there."""

    layers: Sequence[torch.Tensor]  # [B, T, width] after each layer; the last one is normalised as the model does it
    is_prompt: torch.Tensor  # bool [B, T]: images and words
    extra_slots: torch.Tensor  # int64 [B, E], where the head's own tokens are
    memory: Sequence[tuple[torch.Tensor, torch.Tensor]]  # of each layer keys and values [B, KV, T, head_dim], if asked
    next_position: torch.Tensor  # int64 [B], of what would stand behind the prompt and the head's tokens

    def extras(self, layer: int) -> torch.Tensor:
        """The head's own tokens after a layer, [B, E, width]."""
        states = self.layers[layer]
        return states.gather(1, self.extra_slots.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


@dataclass(frozen=True)
class LanguageSizes:
    """Of a language part, as far as heads ask."""

    width: int
    layers: int
    heads: int  # that ask
    key_heads: int  # of keys and values
    head_dim: int
    rope_theta: float | None  # None: it has no rotary positions, and no keys and values to read


class VLMHead(nn.Module):
    """From hidden states to actions; owns the loss. Actions are normalised ones on both sides of it, and a gripper goes
    from -1 (open) to 1 (closed).

    Where a head needs random numbers they follow from `key`, int64 [B], one a sample; in `sample` a generator goes
    before the key.
    """

    extra_tokens: int  # E, behind the instruction
    reads_memory = False  # whether it needs `HiddenStates.memory`

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """See `Policy.blocks`."""
        return ()

    @abstractmethod
    def extras(self, proprio: torch.Tensor) -> torch.Tensor:
        """The tokens [B, E, width] that the model reads behind the instruction; proprio [B, P], scaled."""

    @abstractmethod
    def forward(
        self,
        states: HiddenStates,
        proprio: torch.Tensor,
        actions: torch.Tensor,
        is_pad: torch.Tensor,
        key: torch.Tensor | None = None,
    ) -> LossTerms:
        """proprio [B, P], actions [B, H, A], is_pad bool [B, H]; means over the steps that are there."""

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
    """A head that makes one token an action of the hidden states, and the action of that token alone."""

    actions: RegressionHead

    @abstractmethod
    def fuse(self, states: HiddenStates, proprio: torch.Tensor) -> torch.Tensor:
        """One token an action, [B, H, dim]."""

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
