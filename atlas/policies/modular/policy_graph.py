"""A modular policy of tensors alone, which exporters can follow: instructions are encoded beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from atlas.policies.modular.action_heads.head_contract import GenerativeHead
from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens

if TYPE_CHECKING:
    from atlas.policies.modular.policy import ModularPolicy


class PolicyGraph(nn.Module):
    """The policy for a fixed set of instructions; the language encoder is not part of it."""

    tokens: torch.Tensor  # [I, L, D]
    is_pad: torch.Tensor  # bool [I, L]

    def __init__(self, policy: ModularPolicy, instructions: Sequence[str], source: int) -> None:
        """source: whose statistics scale proprio and actions."""
        super().__init__()
        self.vision, self.proprio_scaler = policy.vision, policy.proprio_scaler
        self._fusion, self._head, self._actions = policy.fusion, policy.head, policy.action_scaler
        self._source, self._processor = source, policy.processor
        with torch.no_grad():
            language = policy.language(list(instructions))
        self.register_buffer("tokens", language.tokens)
        self.register_buffer("is_pad", language.is_pad)

    def forward(
        self, images: torch.Tensor, proprio: torch.Tensor, instruction: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """images uint8 [1, V, 3, S, S], proprio float32 [1, proprio_width], instruction int64 [1], its number; noise,
        for heads that need some, standard normal [1, H, D]. Returns float32 [1, H, A] in the ActionSpec's units."""
        language = LanguageTokens(self.tokens[instruction], self.is_pad[instruction])
        source = torch.full_like(instruction, self._source)
        seen = self.vision(images.float() / 255, language)
        fused = self._fusion(*fusion_inputs(self, seen, language, proprio, source))
        if noise is None:
            actions = self._head.sample(fused)
        else:
            assert isinstance(self._head, GenerativeHead)
            actions = self._head.carry(noise, fused)
        return self._processor.to_execute(self._actions.denormalize(actions, source), proprio)


def fusion_inputs(
    parts: ModularPolicy | PolicyGraph,
    seen: torch.Tensor,
    language: LanguageTokens,
    proprio: torch.Tensor,
    source: torch.Tensor,
) -> tuple[torch.Tensor, LanguageTokens, torch.Tensor]:
    """Return the inputs of fusion: the finished vision tokens [B, N, D], the instruction, and proprio [B, P] scaled.

    seen: vision tokens [B, N, D] as the encoder gives them. proprio: float32 [B, P] as the data has it. source: int64
    [B], whose statistics scale it.
    """
    return parts.vision.finish(seen), language, parts.proprio_scaler.normalize(proprio, source)
