"""Low-rank adapters in frozen modules, through the package peft."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from atlas.config.lora_section import LoRAConfig
from atlas.errors import InputError, did_you_mean


def check_adapters(key: str) -> None:
    """Raise InputError if peft is not installed; key: the setting that needs it."""
    if find_spec("peft") is None:
        raise InputError(f"{key} needs the package peft: run `pip install peft`, or install the extra 'lora'.")


def check_targets(config: LoRAConfig, linear: Iterable[str], key: str) -> None:
    """Raise InputError where one of the config's targets is not the last name of any of these linear layers."""
    known = sorted({name.rpartition(".")[2] for name in linear})
    for target in config.targets or ():
        if target not in known:
            raise InputError(
                f"{key}.targets names '{target}', but no linear layer there has that name."
                f"{did_you_mean(target, known)} There are: {', '.join(known)}."
            )


def add_adapters(module: nn.Module, config: LoRAConfig, usual: Iterable[str], key: str) -> None:
    """Put adapters into linear layers below `module`, in place, and train only these, in float32.

    usual: the layers' names, or last names, if the config names none. Raises InputError, which begins with `key`, if a
    name in the config is not a linear layer's, or peft is missing.
    """
    check_adapters(key)
    from peft import LoraConfig, inject_adapter_in_model

    check_targets(config, [name for name, part in module.named_modules() if isinstance(part, nn.Linear)], key)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # declared as a whole number, used as a factor
        lora_dropout=config.dropout,
        target_modules=list(config.targets or usual),
    )
    inject_adapter_in_model(settings, module)
    for parameter in module.parameters():
        if parameter.requires_grad:
            # Adapters have the precision of the weights they adapt; bfloat16 would round small steps away.
            parameter.data = parameter.data.float()


_ADAPTED = ".base_layer."  # peft adds this to the name of a weight that it adapts
_ADAPTER = ".lora_"


def plain_name(name: str) -> str:
    """A weight's name as it is without adapters."""
    return name.replace(_ADAPTED, ".")


def has_adapters(module: nn.Module) -> bool:
    """Whether a module contains adapters."""
    return any(_ADAPTER in name for name, _ in module.named_parameters())


def merged_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's state dict without adapters, with what they have learned added to the adapted weights in float32.
    The module is unchanged."""
    found = {}
    for name, tensor in module.state_dict().items():
        if _ADAPTER in name:
            continue
        if name.endswith(f"{_ADAPTED}weight"):
            layer: Any = module.get_submodule(name.removesuffix(f"{_ADAPTED}weight"))
            tensor = tensor.float() + sum(layer.get_delta_weight(each).float() for each in layer.active_adapters)
        found[plain_name(name)] = tensor.detach()
    return found
