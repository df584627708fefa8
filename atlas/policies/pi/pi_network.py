"""pi0's and pi0.5's network (Black et al., 2024; Physical Intelligence, 2025): numbers in, velocities out.

A prefix of images and words goes through PaliGemma, whose layers' keys and values are kept. A suffix of noisy actions
(in pi0 preceded by a token of the state) goes through the expert, which reads them. The prefix does not depend on the
suffix, so that training computes both in one pass, and sampling computes the prefix only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from atlas.policies.pi.action_expert import ActionExpert, Memory
from atlas.policies.pi.gemma_layers import GemmaLayer, Rotation
from atlas.policies.pi.pi_sizes import BackboneSizes
from atlas.policies.pi.siglip_tower import SiglipTower
from atlas.policies.published.flow_pieces import look_ahead_mask, positions_of, time_embedding


@dataclass(frozen=True)
class PiShape:
    """The network's settings that do not follow from the backbone's sizes."""

    kind: Literal["pi0", "pi05"]
    chunk_size: int
    max_state_dim: int
    max_action_dim: int
    min_period: float = 4e-3
    max_period: float = 4.0


class Tokens(NamedTuple):
    """A transformer's input tokens."""

    embeddings: torch.Tensor  # [B, N, D]
    valid: torch.Tensor  # bool [B, N], false for padding and for missing cameras
    begins: torch.Tensor  # bool [B, N], true where a new block begins; earlier blocks do not see it


class PrefixRead(NamedTuple):
    """The language model's result for a prefix."""

    memory: Memory  # each layer's keys and values [B, KV, M, head_dim]
    out: torch.Tensor | None  # [B, M, D] after the final norm; None unless asked for


class LanguageModel(nn.Module):
    """Gemma's layers over the prefix. Usually only their memory is needed, and the last layer stops half-way."""

    def __init__(self, sizes: BackboneSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GemmaLayer(sizes.text, sizes.rms_norm_eps, act=sizes.hidden_act) for _ in range(sizes.text.depth)
        )
        self.norm = GemmaRMSNorm(sizes.text.width, sizes.rms_norm_eps)
        self._head_dim, self._rope_theta = sizes.text.head_dim, sizes.rope_theta

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, whole: bool = False
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor | None]:
        """x [B, M, D], mask bool [B, M, M] and positions int64 [B, M] to the memory and, if `whole`, the output."""
        cos, sin = Rotation.of(positions, self._head_dim, self._rope_theta)
        memory = []
        for depth, layer in enumerate(self.layers, start=1):
            last = depth == len(self.layers)
            x, keys, values = layer(x, cos, sin, mask[:, None], memory_only=last and not whole)
            memory.append((keys, values))
        return memory, self.norm(x) if whole else None


class PiNetwork(nn.Module):
    """Images in [-1, 1], token ids, padded states and padded noisy actions to velocities."""

    def __init__(self, sizes: BackboneSizes, shape: PiShape) -> None:
        super().__init__()
        self.sizes, self.shape = sizes, shape
        text, expert = sizes.text.width, sizes.expert.width
        self.vision = SiglipTower(sizes.vision)
        self.projector = nn.Linear(sizes.vision.hidden_size, text)
        self.words = nn.Embedding(sizes.vocab_size, text)
        self.language = LanguageModel(sizes)
        adaptive = shape.kind == "pi05"
        self.expert = ActionExpert(
            sizes.expert, sizes.rms_norm_eps, sizes.rope_theta, expert if adaptive else None, sizes.hidden_act
        )
        self.action_in_proj = nn.Linear(shape.max_action_dim, expert)
        self.action_out_proj = nn.Linear(expert, shape.max_action_dim)
        if adaptive:
            self.time_mlp_in, self.time_mlp_out = nn.Linear(expert, expert), nn.Linear(expert, expert)
        else:
            self.state_proj = nn.Linear(shape.max_state_dim, expert)
            self.action_time_mlp_in, self.action_time_mlp_out = nn.Linear(2 * expert, expert), nn.Linear(expert, expert)

    # ---- the prefix --------------------------------------------------------------------------------------

    def embed_prefix(
        self, images: Sequence[torch.Tensor], seen: Sequence[torch.Tensor], ids: torch.Tensor, valid: torch.Tensor
    ) -> Tokens:
        """images: float [B, 3, S, S] for each slot; for the rest see `join_prefix`."""
        return self.join_prefix([self.embed_image(picture) for picture in images], seen, ids, valid)

    def join_prefix(
        self, images: Sequence[torch.Tensor], seen: Sequence[torch.Tensor], ids: torch.Tensor, valid: torch.Tensor
    ) -> Tokens:
        """images: tokens [B, patches, D] for each slot. seen: bool [B] for each slot, whether there is a camera. ids
        int64 [B, L], valid bool [B, L]: the words. Words are scaled by the square root of their width, images not."""
        parts, there = [], []
        for tokens, is_there in zip(images, seen, strict=True):
            parts.append(tokens)
            there.append(is_there[:, None].expand(-1, tokens.shape[1]))
        words = self.words(ids)
        # In the precision of the words, as it was trained; filled in on the device, to which nothing is sent so.
        parts.append(words * torch.full((), self.sizes.word_scale, dtype=words.dtype, device=words.device))
        there.append(valid)
        embeddings = torch.cat([part.to(words.dtype) for part in parts], dim=1)
        all_valid = torch.cat(there, dim=1)
        return Tokens(embeddings, all_valid, torch.zeros_like(all_valid))

    def embed_image(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] to tokens [B, patches, D]."""
        return self.project(self.see(images))

    sight = ("vision", "projector")  # the modules of `see` and `project`; see `Sees`

    def see(self, pictures: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = self.vision(pictures)
        return seen

    def project(self, seen: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.projector(seen.to(self.projector.weight.dtype))
        return tokens

    def read_prefix(self, prefix: Tokens, whole: bool = False) -> PrefixRead:
        """The language model's memory of a prefix. whole: also its output."""
        mask = never_blind(look_ahead_mask(prefix.valid, prefix.begins))
        memory, out = self.language(prefix.embeddings, mask, positions_of(prefix.valid), whole)
        return PrefixRead(memory, out)

    # ---- the suffix --------------------------------------------------------------------------------------

    def embed_suffix(
        self, state: torch.Tensor | None, noisy: torch.Tensor, time: torch.Tensor
    ) -> tuple[Tokens, torch.Tensor | None]:
        """The suffix's tokens, and the condition [B, D] of adaptive norms (None in pi0), from state [B, max_state_dim]
        (None in pi0.5, whose prompt holds it), noisy actions [B, H, max_action_dim] and time [B] (1 is noise)."""
        actions = self.action_in_proj(noisy)  # [B, H, D]
        waves = time_embedding(time, actions.shape[-1], self.shape.min_period, self.shape.max_period)
        waves = waves.to(actions.dtype)
        condition = None
        if self.shape.kind == "pi05":
            condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(waves))))
            embeddings, first = actions, [True]
        else:
            assert state is not None
            both = torch.cat([actions, waves[:, None].expand_as(actions)], dim=-1)
            actions = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
            embeddings, first = torch.cat([self.state_proj(state)[:, None], actions], dim=1), [True, True]
        valid = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        begins = torch.zeros_like(valid)
        begins[:, : len(first)] = True
        return Tokens(embeddings, valid, begins), condition

    def read_suffix(
        self, suffix: Tokens, memory: Memory, prefix_valid: torch.Tensor, condition: torch.Tensor | None
    ) -> torch.Tensor:
        """[B, N, D] after the expert's final norm. prefix_valid: bool [B, M], for the memory's prefix."""
        mask = suffix_mask(prefix_valid, suffix.valid, suffix.begins)
        where = suffix_positions(prefix_valid, suffix.valid)
        out: torch.Tensor = self.expert(suffix.embeddings, memory, mask, where, condition)
        return out

    def velocity(
        self,
        memory: Memory,
        prefix_valid: torch.Tensor,
        state: torch.Tensor | None,
        noisy: torch.Tensor,
        time: torch.Tensor,
    ) -> torch.Tensor:
        """float32 [B, H, max_action_dim], from actions (time 0) to noise (time 1); see `embed_suffix`."""
        suffix, condition = self.embed_suffix(state, noisy, time)
        out = self.read_suffix(suffix, memory, prefix_valid, condition)[:, -noisy.shape[1] :]
        answer: torch.Tensor = self.action_out_proj(out.to(self.action_out_proj.weight.dtype))
        return answer.float()


def suffix_mask(prefix_valid: torch.Tensor, valid: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """bool [B, N, M + N]: to which of the M prefix tokens and of themselves the N suffix tokens may attend."""
    of_prefix = prefix_valid[:, None, :] & valid[:, :, None]
    return torch.cat([of_prefix, look_ahead_mask(valid, begins)], dim=2)


def suffix_positions(prefix_valid: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Positions int64 [B, N] that continue those of a prefix, bool [B, M]."""
    return prefix_valid.long().sum(dim=1, keepdim=True) + positions_of(valid)


def never_blind(mask: torch.Tensor) -> torch.Tensor:
    """The mask bool [B, N, M], M >= N, with each token allowed to attend to itself.

    Nothing reads the output of an invalid token, but with some kernels a token that attends to nothing gives NaN, and
    makes every gradient NaN.
    """
    n, m = mask.shape[-2:]
    own = torch.ones(n, n, dtype=torch.bool, device=mask.device).tril().triu()
    return mask | torch.cat([own.new_zeros(n, m - n), own], dim=1)
