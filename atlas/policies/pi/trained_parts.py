"""Which of pi's weights are trained, and in which precision the others are held."""

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
    """Whether a weight of a policy, whose names begin with `network.`, is PaliGemma's or an adapter in it."""
    return name.removeprefix("network.").partition(".")[0] in BACKBONE


def unused_weights(network: PiNetwork) -> set[str]:
    """Of the last language layer all but what its keys and values are made of, and the norm after it: nobody reads
    what comes out there. And the biases of the vision tower's keys, which softmax takes out again: what gradients they
    have are rounding, which AdamW would make full steps of."""
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
    """Train all that is used but the whole backbone, or its vision tower."""
    frozen = {*(BACKBONE if backbone else ()), *(("vision",) if vision else ())}
    unused = unused_weights(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in unused and name.partition(".")[0] not in frozen)


def trains_whole(network: PiNetwork) -> bool:
    """Whether all that is used is trained, so that a saved policy needs no other file."""
    unused = unused_weights(network)
    return all(p.requires_grad for name, p in network.named_parameters() if name not in unused)


def adapt_backbone(network: PiNetwork, config: LoRAConfig, key: str) -> None:
    """Adapters in the linear layers of both of the backbone's towers, where they change anything. The rest is left as
    it is. Raises InputError that begins with `key`, where a target of the config's is none of these."""
    there = list(_adaptable(network))
    check_targets(config, there, key)
    chosen = config.targets or (*_VISION, *_LANGUAGE)
    names = [name for name in there if name.rpartition(".")[2] in chosen]
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    add_adapters(network, config.model_copy(update={"targets": None}), names, key)
    for parameter in trained.values():  # which peft has frozen with all the rest
        parameter.requires_grad_(True)


def _adaptable(network: PiNetwork) -> Iterator[str]:
    unused = unused_weights(network)
    for name, module in network.named_modules():
        adaptable = isinstance(module, nn.Linear) and name.startswith(("vision.", "language."))
        if adaptable and f"{name}.weight" not in unused:
            yield name


def held_in(name: str, trained: bool, stored: torch.dtype, low: torch.dtype | None) -> torch.dtype:
    """In which precision a weight is held.

    Trained ones in float32, and so are frozen norms, whose rounding shows and which are small. Other frozen ones in
    `low` (None: as they are stored).
    """
    norm = "norm" in name.rpartition(".")[0].rpartition(".")[2]
    if trained or norm or not stored.is_floating_point:
        return torch.float32
    return low or stored
