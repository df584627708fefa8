"""The network of SmolVLA, whose tensors have the names of LeRobot's files.

The prefix (images, words, state) never sees the actions, so it goes through the language model by itself, once, also in
training; the expert then reads its keys and values layer by layer. The state is a block of its own, which images and
words do not see. It goes through after them, so that gradients pass a frozen language model only through this token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from atlas.policies.published.flow_pieces import look_ahead_mask, positions_of, time_embedding
from atlas.policies.published.flow_policy import Prefix
from atlas.policies.smolvla.smolvla_layers import StreamLayer, apply, bias_of, rotation
from atlas.policies.smolvla.smolvla_sizes import SmolVLASizes
from atlas.policies.smolvla.smolvla_vision import Connector, VisionTower

_BACKBONE = "vlm_with_expert.vlm."
_VISION = _BACKBONE + "model.vision_model."
_CONNECTOR = _BACKBONE + "model.connector"
_TEXT = _BACKBONE + "model.text_model."
# The two names of the word table, for files that store it once.
TABLES = {
    _TEXT + "embed_tokens.weight": _BACKBONE + "lm_head.weight",
    _BACKBONE + "lm_head.weight": _TEXT + "embed_tokens.weight",
}


class SmolVLANetwork(nn.Module):
    """Its children have LeRobot's names; `vision`, `text` and `expert` are shortcuts to three of them."""

    def __init__(self, sizes: SmolVLASizes) -> None:
        super().__init__()
        self.sizes = sizes
        text, expert = sizes.text, sizes.expert
        model = nn.Module()
        model.vision_model = VisionTower(sizes.vision)
        model.connector = Connector(sizes)
        model.text_model = nn.Module()
        model.text_model.embed_tokens = nn.Embedding(sizes.vocabulary, text.width)
        model.text_model.layers = nn.ModuleList(StreamLayer(sizes, text) for _ in range(text.layers))
        model.text_model.norm = LlamaRMSNorm(text.width, text.eps)  # actions do not depend on it
        both = self.vlm_with_expert = nn.Module()
        both.vlm = nn.Module()
        both.vlm.model = model
        both.vlm.lm_head = nn.Linear(text.width, sizes.vocabulary, bias=False)  # likewise
        both.lm_expert = nn.Module()
        both.lm_expert.layers = nn.ModuleList(
            StreamLayer(sizes, expert, cross=sizes.reads_prefix_alone(layer)) for layer in range(expert.layers)
        )
        both.lm_expert.norm = LlamaRMSNorm(expert.width, expert.eps)
        self.state_proj = nn.Linear(sizes.state, text.width)
        self.action_in_proj = nn.Linear(sizes.action, expert.width)
        self.action_out_proj = nn.Linear(expert.width, sizes.action)
        self.action_time_mlp_in = nn.Linear(2 * expert.width, expert.width)
        self.action_time_mlp_out = nn.Linear(expert.width, expert.width)

    @property
    def vision(self) -> VisionTower:
        return self.get_submodule(_VISION[:-1])  # type: ignore[return-value]

    @property
    def text(self) -> nn.Module:
        return self.get_submodule(_TEXT[:-1])

    @property
    def text_layers(self) -> Sequence[nn.Module]:
        return self.get_submodule(_TEXT + "layers")  # type: ignore[return-value]

    @property
    def expert(self) -> nn.Module:
        return self.get_submodule("vlm_with_expert.lm_expert")

    @property
    def expert_layers(self) -> Sequence[nn.Module]:
        return self.get_submodule("vlm_with_expert.lm_expert.layers")  # type: ignore[return-value]

    def draw_embeddings(self) -> None:
        """Draw what enters the layers, of a network without published weights, so that no part drowns another: places
        of patches beside what is seen there, words beside images. PyTorch's own deviation of 1 for places, and the
        factor of `embed_context`, would leave words too weak to be learned from a few hundred episodes."""
        text, positions = self.sizes.text.width, self.vision.embeddings.position_embedding
        nn.init.normal_(positions.weight, std=positions.embedding_dim**-0.5)
        nn.init.normal_(self.text.get_parameter("embed_tokens.weight"), std=text**-0.5)
        with torch.no_grad():
            for parameter in self.get_submodule(_CONNECTOR).parameters():
                parameter.mul_(text**-0.5)

    def drawn_rate_factor(self, name: str) -> float:
        """The factor of the learning rate for a weight that `draw_embeddings` has drawn. AdamW's steps do not depend on
        a weight's size, and `embed_context` multiplies what the connector says by sqrt(width): at the full rate images
        would soon be many times as large as words, which then change nothing of what an image's token says."""
        return self.sizes.text.width**-0.5 if name.startswith(_CONNECTOR) else 1.0

    # ---- what is trained -------------------------------------------------------------------------------------

    def set_trained(self, expert_only: bool, freeze_vision: bool, state_proj: bool) -> None:
        """Choose the trained weights, as LeRobot's options of these names do. Where the language model is trained, its
        head, its final norm and its last layers stay frozen: nothing reads their outputs."""
        self.requires_grad_(True)
        for name, parameter in self.named_parameters():
            if name.startswith(_BACKBONE) and (expert_only or self._is_tail(name)):
                parameter.requires_grad_(False)
            if name.startswith(_VISION) and freeze_vision:
                parameter.requires_grad_(False)
        self.state_proj.requires_grad_(state_proj)

    def _is_tail(self, name: str) -> bool:
        layers = self.sizes.text.layers
        last = {layers - 1} | ({layers - 2} if self.sizes.expert_every > 1 else set())
        frozen = (_BACKBONE + "lm_head.", _TEXT + "norm.", *(f"{_TEXT}layers.{layer}." for layer in last))
        return name.startswith(frozen)

    # ---- the prefix ------------------------------------------------------------------------------------------

    def embed_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """float [B, 3, S, S] in [-1, 1] to [B, tokens, width], not yet scaled."""
        return self.project(self.see(pictures))

    sight = (_VISION[:-1], _CONNECTOR)  # the modules of `see` and `project`; see `Sees`

    def see(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vision(pictures)

    def project(self, seen: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.get_submodule(_CONNECTOR)(seen)
        return tokens

    def embed_context(
        self, pictures: Sequence[torch.Tensor], there: Sequence[bool], words: torch.Tensor, is_word: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled tokens [B, N, width] of images and words, and which of them are valid, bool [B, N]. pictures: the
        image tokens of each slot, of B samples or of 1 that stands for all; words: int64 [B, L]."""
        b, scale = len(words), math.sqrt(self.sizes.text.width)
        tokens, valid = [], []
        for seen, here in zip(pictures, there, strict=True):
            embedded = seen * scale
            tokens.append(embedded.expand(b, -1, -1))
            valid.append(torch.full((b, embedded.shape[1]), here, device=words.device))
        table = self.text.get_submodule("embed_tokens")
        tokens.append(table(words) * scale)
        return torch.cat(tokens, dim=1), torch.cat([*valid, is_word], dim=1)

    def embed_state(self, state: torch.Tensor) -> torch.Tensor:
        """float32 [B, padded] to one token [B, 1, width]."""
        return apply(self.state_proj, state)[:, None]

    def read_context(self, tokens: torch.Tensor, valid: torch.Tensor) -> Prefix:
        """The keys and values of images and words, which all attend to each other."""
        flags = torch.zeros(tokens.shape[1], device=tokens.device)
        bias = bias_of(look_ahead_mask(valid, flags))
        turn = rotation(positions_of(valid), self.sizes.head_dim)
        keys, values = [], []
        for layer in self.text_layers:
            tokens, k, v = layer(tokens, None, None, bias, *turn)
            keys.append(k)
            values.append(v)
        return Prefix(keys, values, valid)

    def read_state(self, context: Prefix, state: torch.Tensor) -> Prefix:
        """The prefix: the context, then the state's token [B, 1, width], which sees the context but is not seen by
        it."""
        b = len(state)
        one = torch.ones(b, 1, dtype=torch.bool, device=state.device)
        valid = torch.cat([context.valid, one], dim=1)
        turn = rotation(context.valid.sum(1, keepdim=True), self.sizes.head_dim)
        bias = bias_of(valid[:, None])
        keys, values = [], []
        for layer, k, v in zip(self.text_layers, context.keys, context.values, strict=True):
            state, own_k, own_v = layer(state, k, v, bias, *turn)
            keys.append(torch.cat([k.to(own_k.dtype), own_k], dim=1))
            values.append(torch.cat([v.to(own_v.dtype), own_v], dim=1))
        return Prefix(keys, values, valid)

    # ---- the suffix ------------------------------------------------------------------------------------------

    def embed_actions(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Noisy actions float32 [B, H, padded] at time float32 [B] to tokens [B, H, expert width]."""
        actions = apply(self.action_in_proj, x)
        waves = time_embedding(time, self.sizes.expert.width, *self.sizes.periods).to(actions.dtype)
        both = torch.cat([actions, waves[:, None].expand_as(actions)], dim=-1)
        return apply(self.action_time_mlp_out, F.silu(apply(self.action_time_mlp_in, both)))

    def velocity(self, prefix: Prefix, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """float32 [B, H, padded]. Actions attend to the prefix and, in joint layers, to themselves and earlier ones."""
        b, h, p = *x.shape[:2], prefix.valid.shape[1]
        tokens = self.embed_actions(x, time)
        steps = torch.arange(h, device=x.device).expand(b, h)
        joint = rotation(prefix.valid.sum(1, keepdim=True) + steps, self.sizes.head_dim)
        alone = rotation(steps, self.sizes.head_dim)  # in layers that read only the prefix, positions start at 0
        valid = torch.cat([prefix.valid, torch.ones(b, h, dtype=torch.bool, device=x.device)], dim=1)
        flags = torch.cat([torch.zeros(p, device=x.device), torch.ones(h, device=x.device)])
        bias = bias_of(look_ahead_mask(valid, flags)[:, p:])
        every = self.sizes.expert_every
        for number, layer in enumerate(self.expert_layers):
            keys, values = prefix.keys[number * every], prefix.values[number * every]
            if self.sizes.reads_prefix_alone(number):
                tokens, _, _ = layer(tokens, keys, values, bias[..., :p], *alone)
            else:
                tokens, _, _ = layer(tokens, keys, values, bias, *joint)
        normed = self.expert.get_submodule("norm")(tokens)
        return apply(self.action_out_proj, normed.float()).float()
