"""Low-rank adapters in frozen modules, by the package peft."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from torch import nn

from atlas.config.lora_section import LoRAConfig
from atlas.errors import InputError, did_you_mean


def check_adapters(key: str) -> None:
    """Raises InputError if peft is not installed; `key` is the setting that asks for it."""
    if find_spec("peft") is None:
        raise InputError(f"{key} needs the package peft: run `pip install peft`, or install the extra 'lora'.")


def add_adapters(module: nn.Module, config: LoRAConfig, usual: Iterable[str], key: str) -> None:
    """Put adapters into linear layers below `module`, in place, and train only these, in float32.

    usual: the layers' names, or last names, if the config names none. Raises InputError, which begins with `key`, if a
    name in the config is not a linear layer's, or peft is missing.
    """
    check_adapters(key)
    from peft import LoraConfig, inject_adapter_in_model

    linear = sorted({name.rpartition(".")[2] for name, m in module.named_modules() if isinstance(m, nn.Linear)})
    for target in config.targets or ():
        if target not in linear:
            raise InputError(
                f"{key}.targets names '{target}', but no linear layer there has that name."
                f"{did_you_mean(target, linear)} There are: {', '.join(linear)}."
            )
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # declared as a whole number, used as a factor
        lora_dropout=config.dropout,
        target_modules=list(config.targets or usual),
    )
    inject_adapter_in_model(settings, module)
    for parameter in module.parameters():
        if parameter.requires_grad:
            # They have the precision of what they adapt. A small step would be lost in bfloat16's rounding.
            parameter.data = parameter.data.float()
