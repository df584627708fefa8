"""The language part of an image-text model: a prompt with images in it, and a head's tokens, to hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from atlas.policies.pretrained_weights import FrozenWeights
from atlas.policies.vlm.families import Family
from atlas.policies.vlm.prompts import PromptBatch
from atlas.policies.vlm.vlm_head_contract import HiddenStates, LanguageSizes

# What of a layer its keys and values come from.
_READ_FOR_KEYS = {"input_layernorm", "k_proj", "v_proj", "k_norm", "qkv_proj"}


class LanguagePart(nn.Module):
    """`forward(prompts, seen, extras)`: a batch of prompts, the images' tokens [B, V * N, D] and a head's own tokens
    [B, E, width] to the HiddenStates after each layer.

    Images and words attend to each other as the model was trained, and never to the head's tokens, which stand behind
    them; these attend to all that is there, and to each other. Padding is never attended to.
    """

    def __init__(self, model: Any, family: Family, frozen: FrozenWeights | None, stays: bool) -> None:
        """model: of transformers. stays: whether it is not trained, apart from adapters. frozen: its weights, if they
        stay and were read."""
        super().__init__()
        self.model, self.frozen = model, frozen
        self._family, self._stays = family, stays
        self._takes_positions = not getattr(model.config, "is_encoder_decoder", False)
        if stays:
            model.requires_grad_(False)

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def sizes(self) -> LanguageSizes:
        config = self.model.config
        heads, rope = int(config.num_attention_heads), getattr(config, "rope_parameters", None)
        return LanguageSizes(
            width=self.width,
            layers=len(self.layers),
            heads=heads,
            key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or self.width // heads),
            rope_theta=float(rope["rope_theta"]) if rope and "rope_theta" in rope else None,
        )

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.model.layers)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """See `Policy.blocks`."""
        return self.layers

    def train_keys_alone(self) -> None:
        """Of the last layer, for a head that reads keys and values: nothing asks for what else comes out of it."""
        layer = self.layers[-1]
        outside = {id(p) for block in self.layers for p in block.parameters()}
        behind = [p for p in self.model.parameters() if id(p) not in outside]
        words = {id(p) for p in self.model.get_input_embeddings().parameters()}
        unread = [p for name, p in layer.named_parameters() if not set(name.split(".")) & _READ_FOR_KEYS]
        for parameter in (*unread, *(p for p in behind if id(p) not in words)):
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> LanguagePart:
        """Frozen weights stay in eval mode: their dropout does not come back with adapters."""
        super().train(mode)
        if self._stays:
            self.model.eval()
            for name, module in self.model.named_modules():
                if name.rpartition(".")[2] == "lora_dropout":
                    module.train(mode)
        return self

    def forward(
        self, prompts: PromptBatch, seen: torch.Tensor, extras: torch.Tensor, wants_memory: bool = False
    ) -> HiddenStates:
        words = self.model.get_input_embeddings()(prompts.ids)
        seen = seen.to(words.dtype)
        tokens = _put(words, prompts.image_slots, seen[..., : self.width])
        tokens = _put(tokens, prompts.extra_slots, extras.to(words.dtype))
        is_extra = _marked(prompts.extra_slots, prompts.is_there)
        states: list[torch.Tensor] = []
        memory = _Memory()
        told: dict[str, Any] = {"inputs_embeds": tokens, "attention_mask": self._mask(prompts.is_there, is_extra)}
        if self._takes_positions:
            told |= {"position_ids": prompts.positions, "use_cache": False}
        if wants_memory:
            told["past_key_values"] = memory
        with ExitStack() as hooks:
            for number, layer in enumerate(self.layers):
                deeper = seen[..., (number + 1) * self.width : (number + 2) * self.width]
                keep = _keep(states, prompts.image_slots, deeper, memory)
                hooks.callback(layer.register_forward_hook(keep).remove)
            last = self.model(**told).last_hidden_state
        spread = prompts.positions if prompts.positions.ndim == 2 else prompts.positions[0]
        return HiddenStates(
            [*states[:-1], last],
            prompts.is_there & ~is_extra,
            prompts.extra_slots,
            [memory.kept[layer] for layer in sorted(memory.kept)],
            spread.masked_fill(~prompts.is_there, -1).amax(1) + 1,
        )

    def _mask(self, is_there: torch.Tensor, is_extra: torch.Tensor) -> torch.Tensor:
        """Which places each place may attend to: bool [B, 1, T, T], or what is added to the scores, where the model
        has attention that knows no such masks. Padding attends to itself, since a softmax needs something."""
        length = is_there.shape[1]
        place = torch.arange(length, device=is_there.device)
        before = place[None, :] <= place[:, None]
        reads = torch.ones_like(before) if self._family.bidirectional else before
        among = reads[None] & ~is_extra[:, None, :] | is_extra[:, :, None]
        mask = (among & is_there[:, None, :] | (place[None, :] == place[:, None]))[:, None]
        if self.model.config._attn_implementation != "eager":
            return mask
        dtype = self.model.get_input_embeddings().weight.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


class _Memory:
    """Takes the place of transformers' cache: keeps each layer's keys, rotated, and values. A layer that is computed
    again on the way back finds its first ones still there."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *more: Any, **others: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, KV, T, head_dim] each, which are what the layer itself attends to."""
        self.kept.setdefault(layer, (keys, values))
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        return 0


def _put(tokens: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Tokens [B, T, D] with values [B, N, D] in N slots of each sample."""
    return tokens.scatter(1, slots.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), values)


def _marked(slots: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """bool [B, T], true in the slots [B, N]."""
    return torch.zeros_like(like).scatter(1, slots, torch.ones_like(slots, dtype=torch.bool))


class _Tied(torch.autograd.Function):
    """Keys and values unchanged, with a gradient of zeros for what came out of their layer.

    FSDP gathers a layer's weights again when a gradient for what it gave arrives. Keys and values leave the layer by
    another way, on which FSDP sees no gradient coming.
    """

    @staticmethod
    def forward(ctx: Any, keys: torch.Tensor, values: torch.Tensor, output: torch.Tensor) -> Any:
        ctx.like = output.new_empty(0), output.shape
        return keys.view_as(keys), values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        some, shape = ctx.like
        return *gradients, some.new_zeros(()).expand(shape)


def _keep(
    states: list[torch.Tensor], slots: torch.Tensor, deeper: torch.Tensor, memory: _Memory
) -> Callable[[nn.Module, Any, Any], torch.Tensor | None]:
    """A hook that keeps what a layer gives, after it has added the images' deeper features [B, N, D], where there are
    some (DeepStack, as in Qwen3-VL)."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> torch.Tensor | None:
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        number = len(states)
        if isinstance(module, FSDPModule) and number in memory.kept and hidden.requires_grad:
            memory.kept[number] = _Tied.apply(*memory.kept[number], hidden)  # type: ignore[no-untyped-call]
        if deeper.shape[-1] == 0:
            states.append(hidden)
            return None
        added = hidden.scatter_add(1, slots.unsqueeze(-1).expand_as(deeper), deeper.to(hidden.dtype))
        states.append(added)
        return added

    return hook
