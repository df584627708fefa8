"""What a configured policy consists of: parameters, tokens and arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atlas.config import Config
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.policy.policy import AtlasPolicy
from atlas.policy.processor import PolicyProcessor
from atlas.types import ActionSpec, Batch

_PARTS = ("vision", "language", "fusion", "head")
_PROPRIO_DIM = 8  # LIBERO's; a dataset with another one changes one small matrix
_CAMERAS = ("agentview", "eye_in_hand")


def summarize(config: Config) -> dict[str, Any]:
    """Parameters, tokens and FLOPs a sample of the policy that a config describes, for data like LIBERO's.

    FLOPs are those of one forward pass (a multiplication and an addition count as two), counted by torch while it
    runs on one sample. Tokens are what a part hands on.
    """
    cameras = tuple(config.data.cameras or _CAMERAS)
    policy = AtlasPolicy(config.model, _example_processor(config, cameras)).eval()
    parts = [_count(name, getattr(policy, name)) for name in _PARTS]
    tokens: dict[str, int] = {}
    for name in _PARTS[:-1]:
        getattr(policy, name).register_forward_hook(lambda _m, _i, out, name=name: tokens.update({name: _tokens(out)}))
    policy.requires_grad_(False)  # after the count: torch's counter follows gradients where there are some
    with FlopCounterMode(display=False) as counter:
        policy.sample(_example_batch(config, cameras))
    parts = [part | {"tokens": tokens.get(part["name"])} for part in parts]
    return {
        "parts": parts,
        "parameters": sum(p["parameters"] for p in parts),
        "trainable_parameters": sum(p["trainable"] for p in parts),
        "flops_per_sample": counter.get_total_flops(),
    }


def _count(name: str, part: nn.Module) -> dict[str, Any]:
    trainable = sum(p.numel() for p in part.parameters() if p.requires_grad)
    return {"name": name, "parameters": sum(p.numel() for p in part.parameters()), "trainable": trainable}


def _tokens(output: Any) -> int:
    tokens = output[0] if isinstance(output, tuple) else output
    return int(tokens.shape[1])


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
    )


def _example_batch(config: Config, cameras: tuple[str, ...]) -> Batch:
    size = config.data.image_size
    return Batch(
        images=torch.zeros(1, len(cameras), 3, size, size),
        proprio=torch.zeros(1, _PROPRIO_DIM),
        instruction=["pick up the red cube"],
        source=torch.zeros(1, dtype=torch.int64),
    )
