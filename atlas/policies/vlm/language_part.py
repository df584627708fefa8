"""The language part of an image-text model: from a prompt with images, and a head's tokens, to hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule

from atlas.policies.pretrained_weights import FrozenWeights
from atlas.policies.vlm.families import Family
from atlas.policies.vlm.prompts import PromptBatch
from atlas.policies.vlm.vlm_head_contract import HiddenStates, LanguageSizes

# The modules of a layer on which its keys and values depend.
_READ_FOR_KEYS = {"input_layernorm", "k_proj", "v_proj", "k_norm", "qkv_proj"}


class LanguagePart(nn.Module):
    """`forward(prompts, seen, extras)`: a batch of prompts, the images' tokens [B, V * N, D] and a head's own tokens
    [B, E, width] to the HiddenStates after each layer.

    Images and words attend to each other as in the model's training, and never to the head's tokens, which follow them.
    The head's tokens attend to the whole prompt and to each other. No token attends to padding.
    """

    def __init__(
        self, model: Any, family: Family, frozen: FrozenWeights | None, stays: bool, adapted: bool = False
    ) -> None:
        """model: transformers'. stays: whether it is frozen, apart from adapters. frozen: its weights, if it is frozen
        and they were read. adapted: whether it has, or will get, adapters."""
        super().__init__()
        self.model, self.frozen = model, frozen
        self._family, self._stays = family, stays
        self._takes_positions = not getattr(model.config, "is_encoder_decoder", False)
        self._prompt_stays = stays and not adapted and self._takes_positions  # only then are keys and values kept
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
        """Freeze, for a head that reads keys and values, all weights of the last layer and after it that these do not
        depend on: nothing reads the output."""
        layer = self.layers[-1]
        outside = {id(p) for block in self.layers for p in block.parameters()}
        behind = [p for p in self.model.parameters() if id(p) not in outside]
        words = {id(p) for p in self.model.get_input_embeddings().parameters()}
        unread = [p for name, p in layer.named_parameters() if not set(name.split(".")) & _READ_FOR_KEYS]
        for parameter in (*unread, *(p for p in behind if id(p) not in words)):
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> LanguagePart:
        """Set the mode; frozen weights stay in eval mode, so that only the adapters' dropout is active."""
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
        seen, extras = seen.to(words.dtype), extras.to(words.dtype)
        tokens = _put(words, prompts.image_slots, seen[..., : self.width])
        is_extra = _marked(prompts.extra_slots, prompts.is_there)
        is_prompt = prompts.is_there & ~is_extra
        if self._prompt_stays and extras.shape[1] and not wants_memory:
            return self._in_two(prompts, tokens, is_prompt, seen, extras)
        memory = _Memory()
        tokens = _put(tokens, prompts.extra_slots, extras)
        layers = self._run(
            tokens,
            self._mask(prompts.is_there, is_extra),
            prompts.positions,
            memory if wants_memory else None,
            prompts.image_slots,
            seen,
        )
        kept = [memory.kept[layer] for layer in sorted(memory.kept)]
        return HiddenStates(layers, is_prompt, prompts.extra_slots, kept, _next_position(prompts))

    def _in_two(
        self,
        prompts: PromptBatch,
        tokens: torch.Tensor,
        is_prompt: torch.Tensor,
        seen: torch.Tensor,
        extras: torch.Tensor,
    ) -> HiddenStates:
        """`forward` for a fully frozen model: no gradient passes the prompt, which does not depend on the head's
        tokens. These are read separately, with the prompt's keys and values. In the result the prompt's states come
        first, then those of the head's tokens."""
        count = extras.shape[1]
        length = tokens.shape[1] - count
        there = is_prompt[:, :length]
        memory = _Memory()
        with torch.set_grad_enabled(torch.is_grad_enabled() and seen.requires_grad):  # see `attention.by_gradient`
            mask = self._mask(there, torch.zeros_like(there))
            places = prompts.positions[..., :length]
            prompt = self._run(tokens[:, :length], mask, places, memory, prompts.image_slots, seen)
        slots = prompts.extra_slots.expand(*prompts.positions.shape[:-1], -1)
        own = torch.ones(len(extras), count, count, dtype=torch.bool, device=there.device)
        mask = self._scores(torch.cat([there[:, None].expand(-1, count, -1), own], dim=-1)[:, None])
        read = self._run(extras, mask, prompts.positions.gather(-1, slots), _Memory(memory.kept))
        behind = length + torch.arange(count, device=there.device).expand(len(extras), -1)
        layers = [torch.cat(both, dim=1) for both in zip(prompt, read, strict=True)]
        return HiddenStates(layers, F.pad(there, (0, count)), behind, (), _next_position(prompts))

    def _run(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        memory: _Memory | None = None,
        slots: torch.Tensor | None = None,
        seen: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Tokens [B, T, width] to the output of each layer. The columns of `seen` [B, N, D] beyond a token's width are
        added in the slots [B, N] after the first layers."""
        states: list[torch.Tensor] = []
        inputs: dict[str, Any] = {"inputs_embeds": tokens, "attention_mask": mask}
        if self._takes_positions:
            inputs |= {"position_ids": positions, "use_cache": False}
        if memory is not None:
            inputs["past_key_values"] = memory
        with ExitStack() as hooks:
            for number, layer in enumerate(self.layers):
                deeper = None if seen is None else seen[..., (number + 1) * self.width : (number + 2) * self.width]
                hooks.callback(layer.register_forward_hook(_keep(states, slots, deeper, memory)).remove)
            last = self.model(**inputs).last_hidden_state
        return [*states[:-1], last]

    def _mask(self, is_there: torch.Tensor, is_extra: torch.Tensor) -> torch.Tensor:
        """The mask of the positions to which each position may attend, see `_scores`; is_there, is_extra: bool [B, T].
        Padding attends to itself, since a softmax needs at least one position."""
        length = is_there.shape[1]
        place = torch.arange(length, device=is_there.device)
        before = place[None, :] <= place[:, None]
        reads = torch.ones_like(before) if self._family.bidirectional else before
        among = reads[None] & ~is_extra[:, None, :] | is_extra[:, :, None]
        mask = (among & is_there[:, None, :] | (place[None, :] == place[:, None]))[:, None]
        return self._scores(mask)

    def _scores(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask bool [B, 1, T, S], or, for attention that takes no boolean masks, the numbers to add to the scores."""
        if self.model.config._attn_implementation != "eager":
            return mask
        dtype = self.model.get_input_embeddings().weight.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


class _Memory:
    """Stands in for transformers' cache: keeps each layer's rotated keys and its values. A layer that is recomputed in
    the backward pass finds its first ones still there."""

    def __init__(self, before: Mapping[int, tuple[torch.Tensor, torch.Tensor]] | None = None) -> None:
        """before: for each layer, keys and values that precede those that it computes."""
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._before = before or {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *more: Any, **others: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keys and values, [B, KV, T, head_dim] each, to those that the layer attends to."""
        self.kept.setdefault(layer, (keys, values))
        if layer not in self._before:
            return keys, values
        earlier_keys, earlier_values = self._before[layer]
        return torch.cat([earlier_keys, keys], dim=2), torch.cat([earlier_values, values], dim=2)

    def get_seq_length(self, layer: int = 0) -> int:
        return 0


def _next_position(prompts: PromptBatch) -> torch.Tensor:
    """int64 [B]: the position that follows all tokens."""
    spread = prompts.positions if prompts.positions.ndim == 2 else prompts.positions[0]
    return spread.masked_fill(~prompts.is_there, -1).amax(1) + 1


def _put(tokens: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Tokens [B, T, D] with values [B, N, D] in N slots of each sample."""
    return tokens.scatter(1, slots.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), values)


def _marked(slots: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """bool [B, T], true in the slots [B, N]."""
    return torch.zeros_like(like).scatter(1, slots, torch.ones_like(slots, dtype=torch.bool))


class _Tied(torch.autograd.Function):
    """Returns keys and values unchanged, and gives their layer's output a gradient of zeros.

    FSDP gathers a layer's weights again when a gradient for its output arrives. Keys and values leave the layer in
    another way, in which FSDP sees no gradient arrive.
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
    states: list[torch.Tensor], slots: torch.Tensor | None, deeper: torch.Tensor | None, memory: _Memory | None
) -> Callable[[nn.Module, Any, Any], torch.Tensor | None]:
    """A hook that adds the images' deeper features [B, N, D], if any, to a layer's output (DeepStack, as in Qwen3-VL),
    and keeps the result."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> torch.Tensor | None:
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        number = len(states)
        if memory is not None and isinstance(module, FSDPModule) and number in memory.kept and hidden.requires_grad:
            memory.kept[number] = _Tied.apply(*memory.kept[number], hidden)  # type: ignore[no-untyped-call]
        if deeper is None or slots is None or deeper.shape[-1] == 0:
            states.append(hidden)
            return None
        added = hidden.scatter_add(1, slots.unsqueeze(-1).expand_as(deeper), deeper.to(hidden.dtype))
        states.append(added)
        return added

    return hook
