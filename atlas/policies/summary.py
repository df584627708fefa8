"""The parts of a configured policy and their costs: parameters, tokens, arithmetic, memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from atlas.config import Config
from atlas.data.sampling.history import History
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.errors import InputError, did_you_mean
from atlas.policies.base import LearnsFromTeacher, Policy
from atlas.policies.processor import PolicyProcessor
from atlas.system.gpu_facts import GPU_PEAKS
from atlas.types import ActionSpec, Batch

_PROPRIO_DIM = 8  # LIBERO's; another number changes one small matrix
_CAMERAS = ("agentview", "eye_in_hand")
_GIB = 2**30


def summarize(config: Config, gpu: str = "h100") -> dict[str, Any]:
    """Parameters, tokens, FLOPs and memory of the policy that a config describes, for data like LIBERO's.

    FLOPs are counted by torch while the policy runs forward, and for training also backward, on one empty sample (a
    multiplication and an addition count as two). The roofline is a GPU's speed at its peak: real runs reach half of it
    at best. Nothing is downloaded except the config of a language encoder. Raises InputError.
    """
    if gpu not in GPU_PEAKS:
        near = did_you_mean(gpu, list(GPU_PEAKS))
        raise InputError(f"--gpu is one of {', '.join(GPU_PEAKS)}, not '{gpu}'.{near}")
    cameras = tuple(config.data.cameras or _CAMERAS) if config.model.reads_images else ()
    with torch.device("meta"):
        policy = config.model.build(_example_processor(config, cameras), read_weights=False)
    parts = [_count(name, part) for name, part in policy.parts().items()]
    batch = _example_batch(config, cameras).to("meta")
    for part, counted in zip(parts, _flops_and_tokens(policy.eval(), batch), strict=True):
        part |= counted
    peak = GPU_PEAKS[gpu].bf16
    if isinstance(policy, LearnsFromTeacher):
        policy.load_teacher(read_weights=False)
    training = training_flops(policy.train(), batch)
    return {
        "parts": parts,
        "parameters": sum(p["parameters"] for p in parts),
        "trainable_parameters": sum(p["trainable"] for p in parts),
        "flops_per_sample": sum(p["flops"] for p in parts),
        "training_flops_per_sample": training,
        "roofline": {"gpu": gpu, "peak_flops": peak, "samples_per_second": peak / training},
        "memory_gib": _memory(config, policy, batch),
    }


def _count(name: str, part: nn.Module) -> dict[str, Any]:
    trainable = sum(p.numel() for p in part.parameters() if p.requires_grad)
    return {"name": name, "parameters": sum(p.numel() for p in part.parameters()), "trainable": trainable}


def _flops_and_tokens(policy: Policy, batch: Batch) -> list[dict[str, Any]]:
    """Return each part's FLOPs while actions are sampled once, and the tokens that it passes on."""
    tokens: dict[str, int] = {}
    parts = policy.parts()
    for name, part in parts.items():
        part.register_forward_hook(lambda _m, _i, out, name=name: tokens.update(_tokens(name, out)))
    trained = {name: p.requires_grad for name, p in policy.named_parameters()}
    policy.requires_grad_(False)  # torch's counter would also follow gradients
    with FlopCounterMode(display=False) as counter:
        policy(batch)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(trained[name])
    prefix = f"{type(policy).__name__}."
    by_module = {path.removeprefix(prefix): sum(n.values()) for path, n in counter.get_flop_counts().items()}
    paths = {id(module): path for path, module in policy.named_modules()}
    return [
        {"flops": _flops_of(paths[id(part)], part, by_module), "tokens": tokens.get(name)}
        for name, part in parts.items()
    ]


def _flops_of(path: str, module: nn.Module, by_module: Mapping[str, int]) -> int:
    """The FLOPs of a module; if it is not called itself, such as a list of others, those of its members."""
    if path in by_module:
        return by_module[path]
    return sum(_flops_of(f"{path}.{name}", child, by_module) for name, child in module.named_children())


def training_flops(policy: Policy, batch: Batch) -> int:
    """The FLOPs of the whole batch, forward and backward; both on the meta device, where nothing is computed.

    Frozen weights take part only in the forward pass, or need no gradient of their own.
    """
    with FlopCounterMode(display=False) as counter:
        policy(batch).loss.backward()
    policy.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def _memory(config: Config, policy: Policy, batch: Batch) -> dict[str, float]:
    """GiB on a GPU at the config's batch size, without the allocator's and CUDA's own share.

    Frozen weights are in bfloat16; trained ones in float32 with gradients, AdamW's two moments and the average.
    Activations are what autograd keeps for the backward pass, counted on one sample in float32; bfloat16 takes about
    half.
    """
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    of_frozen = sum(p.numel() for p in policy.parameters() if not p.requires_grad)
    copies = 4 + bool(config.training.ema_decay)
    weights = 4 * trainable * copies + 2 * of_frozen
    if config.training.activation_checkpointing:
        for block in policy.blocks():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    activations = _kept_for_backward(policy.train(), batch) * config.data.batch_samples
    return {
        "weights_and_optimizer": weights / _GIB,
        "activations": activations / _GIB,
        "total": (weights + activations) / _GIB,
    }


def _kept_for_backward(policy: Policy, batch: Batch) -> int:
    """The bytes per sample that autograd keeps, without weights."""
    weights = {p.untyped_storage()._cdata for p in policy.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        holds.append(tensor)  # otherwise its storage's address would be reused for the next one
        return tensor

    holds: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(batch)
    return sum(kept.values())


def _tokens(part: str, output: Any) -> dict[str, int]:
    """{part: tokens}, if it returns tokens [B, N, D]."""
    tokens = output[0] if isinstance(output, tuple) else output
    return {part: int(tokens.shape[1])} if isinstance(tokens, torch.Tensor) and tokens.ndim == 3 else {}


def _example_processor(config: Config, cameras: tuple[str, ...]) -> PolicyProcessor:
    spec = ActionSpec()

    def flat(n: int) -> ColumnStatistics:
        zeros, ones = (0.0,) * n, (1.0,) * n
        return ColumnStatistics(zeros, ones, tuple(-1.0 for _ in ones), ones, tuple(-1.0 for _ in ones), ones)

    statistics = DatasetStatistics("example", 1, 1, flat(spec.dim), flat(_PROPRIO_DIM))
    return PolicyProcessor(
        cameras=cameras,
        camera_size=config.data.image_size,
        image_size=config.data.image_size,
        action_horizon=config.data.action_horizon,
        proprio_dim=_PROPRIO_DIM,
        action_spec=spec,
        statistics=(statistics,),
        scaling=config.model.processor,
        fit=config.model.image_fit(),
        history=History(**config.data.history.model_dump()),
    )


def _example_batch(config: Config, cameras: tuple[str, ...]) -> Batch:
    size, horizon, spec = config.data.image_size, config.data.action_horizon, ActionSpec()
    steps = config.data.history.steps
    return Batch(
        images=torch.zeros(1, steps * len(cameras), 3, size, size) if cameras else None,
        proprio=torch.zeros(1, steps * _PROPRIO_DIM),
        instruction=["pick up the red cube"],
        source=torch.zeros(1, dtype=torch.int64),
        actions=torch.zeros(1, horizon, spec.dim),
        action_is_pad=torch.zeros(1, horizon, dtype=torch.bool),
        key=torch.zeros(1, dtype=torch.int64),
    )
