"""The setup of the policy's blocks for training: recomputed in the backward pass, compiled, or unchanged."""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from atlas.config import Config
from atlas.errors import InputError
from atlas.policies.base import Policy, RecomputesBlocks


def set_up_blocks(policy: Policy, recompute: bool, compiled: bool) -> None:
    """Make the policy's trained blocks run this way from now on; their names, weights and hooks stay the same.

    recompute: keep only a block's inputs, and run it again in the backward pass (Chen et al., 2016). Loss and gradients
    are the same bit for bit. compiled: run it through torch.compile, which rounds differently; the first call compiles.
    Both apply only when gradients are needed: validation and rollouts run the blocks unchanged.
    """
    if not (recompute or compiled):
        return
    if recompute:
        _stop_own_recomputing(policy)  # otherwise blocks would be run three times
    forms: dict[type, Callable[..., Any]] = {}  # blocks of the same kind share one
    for block in policy.blocks():
        kind = type(block)
        # The backbone's own setting compiles a block with everything its call does; recomputing must stay outside.
        if compiled or block._compiled_call_impl is not None:
            forms.setdefault(kind, torch.compile(kind.forward, dynamic=False))
            block._compiled_call_impl = None
        way = _InTraining(kind.forward, forms.get(kind), recompute)
        # Set on the block instead of wrapping it, which would change names. A deep copy calls itself, not this block.
        block.forward = functools.partial(way, block)


class _InTraining:
    """Replaces a block's forward."""

    def __init__(self, forward: Callable[..., Any], compiled: Callable[..., Any] | None, recompute: bool) -> None:
        self._forward, self._compiled, self._recompute = forward, compiled, recompute
        self._compiled_for: object = None

    def __call__(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(block, *args, **kwargs)
        run = self._forward
        if self._compiled is not None and self._as_first(args, kwargs):
            run = self._compiled
        if not self._recompute:
            return run(block, *args, **kwargs)
        return checkpoint(functools.partial(run, block), *args, use_reentrant=False, **kwargs)

    def _as_first(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the inputs have the shapes of the first ones, for which the block is compiled. Compiling for others,
        such as another set of instructions, would take seconds each; they run uncompiled."""
        shapes = _shapes(args), _shapes(kwargs)
        self._compiled_for = self._compiled_for or shapes
        return shapes == self._compiled_for


def _shapes(value: Any) -> object:
    """The properties of an argument that a compiled form depends on."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_shapes, value))
    if isinstance(value, Mapping):
        return tuple((key, _shapes(value[key])) for key in sorted(value))
    return value


def plain_copy(policy: Policy, device: torch.device | str) -> Policy:
    """A separate copy on `device` whose blocks run unchanged; on "meta" it costs nothing."""
    places = [p for module in policy.modules() for p in (module._parameters, module._buffers)]
    tensors = {id(t): t for place in places for t in place.values() if t is not None}
    memo: dict[int, Any] = {}
    for key, tensor in tensors.items():
        moved = torch.empty_like(tensor, device=device).copy_(tensor.detach())  # `to` might return the tensor itself
        weight = isinstance(tensor, nn.Parameter)
        memo[key] = nn.Parameter(moved, requires_grad=tensor.requires_grad) if weight else moved
    copied = copy.deepcopy(policy, memo).to(device)
    for module in copied.modules():
        if isinstance(getattr(module.__dict__.get("forward"), "func", None), _InTraining):
            del module.forward
    _stop_own_recomputing(copied)
    return copied


def _stop_own_recomputing(policy: Policy) -> None:
    for module in policy.modules():
        if isinstance(module, RecomputesBlocks):
            module.recompute = False


def set_tf32(allowed: bool) -> None:
    """Whether this process computes float32 matrix products and convolutions on GPUs in TF32: 10 bits of mantissa, and
    several times as fast. Processes that do not call it have torch's default, which is TF32 for convolutions only.

    `torch.set_float32_matmul_precision` would also change results on CPUs.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def check_blocks(config: Config, gpu: bool) -> None:
    """Raises InputError if blocks are to be compiled but there is nothing to compile with."""
    key = "training.compile" if config.training.compile else config.model.compiling_key
    if key is None:
        return
    missing = _missing(gpu)
    if missing is not None:
        raise InputError(f"{key} is true, but torch.compile lacks {missing}. Install it, or set {key}=false.")


def _missing(gpu: bool) -> str | None:
    """Name what torch.compile lacks here: on GPUs it needs Triton, and C for what calls it; on CPUs it needs C++."""
    if gpu and importlib.util.find_spec("triton") is None:
        return "the package triton"
    language, variable = ("C", "CC") if gpu else ("C++", "CXX")
    usual = ["gcc", "clang"] if gpu else ["clang++" if sys.platform == "darwin" else "g++"]
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([named] if named else usual)):
        which = f"'{named}', which {variable} names" if named else " or ".join(usual)
        return f"a {language} compiler ({which})"
    headers = Path(sysconfig.get_path("include"))
    return None if (headers / "Python.h").exists() else f"Python's headers (Python.h in {headers})"
