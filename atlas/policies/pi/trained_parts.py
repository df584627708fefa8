"""The weights of pi that are trained, and the precision in which the others are held."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from atlas.config.lora_section import LoRAConfig
from atlas.policies.adapters import add_adapters, check_targets
from atlas.policies.pi.pi_network import PiNetwork

BACKBONE = ("vision", "projector", "words", "language")  # modules of the network
_VISION = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_LANGUAGE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_backbone(name: str) -> bool:
    """Whether a policy's weight (its name may begin with `network.`) is PaliGemma's, or an adapter in PaliGemma."""
    return name.removeprefix("network.").partition(".")[0] in BACKBONE


def unused_weights(network: PiNetwork) -> set[str]:
    """The names of weights that have no effect. In the last language layer, all that its keys and values do not depend
    on, and the norm after it: nothing reads the layer's output. And the biases of the vision tower's keys, which
    softmax cancels: their gradients are rounding errors, from which AdamW would make full steps."""
    last = f"language.layers.{len(network.language.layers) - 1}."
    read = (f"{last}input_layernorm.", f"{last}self_attn.k_proj.", f"{last}self_attn.v_proj.")
    ends = (last, "language.norm.")
    return {
        name
        for name, _ in network.named_parameters()
        if (name.startswith(ends) and not name.startswith(read))
        or (name.startswith("vision.") and name.endswith("k_proj.bias"))
    }


def freeze(network: PiNetwork, backbone: bool, vision: bool) -> None:
    """Train all weights that have an effect, except the backbone's, or its vision tower's, if these are frozen."""
    frozen = {*(BACKBONE if backbone else ()), *(("vision",) if vision else ())}
    unused = unused_weights(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in unused and name.partition(".")[0] not in frozen)


def trains_whole(network: PiNetwork) -> bool:
    """Whether all weights that have an effect are trained, so that a saved policy needs no other file."""
    unused = unused_weights(network)
    return all(p.requires_grad for name, p in network.named_parameters() if name not in unused)


def adapt_backbone(network: PiNetwork, config: LoRAConfig, key: str) -> None:
    """Add adapters to the linear layers of the backbone's two towers, where they have an effect. Raises InputError,
    which begins with `key`, where one of the config's targets is not such a layer."""
    layers = list(_adaptable(network))
    check_targets(config, layers, key)
    chosen = config.targets or (*_VISION, *_LANGUAGE)
    names = [name for name in layers if name.rpartition(".")[2] in chosen]
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    add_adapters(network, config.model_copy(update={"targets": None}), names, key)
    for parameter in trained.values():  # peft has frozen these with all others
        parameter.requires_grad_(True)


def _adaptable(network: PiNetwork) -> Iterator[str]:
    unused = unused_weights(network)
    for name, module in network.named_modules():
        adaptable = isinstance(module, nn.Linear) and name.startswith(("vision.", "language."))
        if adaptable and f"{name}.weight" not in unused:
            yield name


def held_in(name: str, trained: bool, stored: torch.dtype, low: torch.dtype | None) -> torch.dtype:
    """The precision in which a weight is held.

    float32 for trained weights, and for frozen norms, which are small and whose rounding matters; `low` for other
    frozen weights (None: as stored).
    """
    norm = "norm" in name.rpartition(".")[0].rpartition(".")[2]
    if trained or norm or not stored.is_floating_point:
        return torch.float32
    return low or stored
