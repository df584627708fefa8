"""The action heads by name."""

from __future__ import annotations

from atlas.config import FlowMatchingHeadConfig, RegressionHeadConfig
from atlas.policies.modular.flow_matching import FlowMatchingHead
from atlas.policies.modular.regression import RegressionHead
from atlas.types import ActionSpec


def make_head(
    config: RegressionHeadConfig | FlowMatchingHeadConfig, dim: int, spec: ActionSpec, horizon: int
) -> RegressionHead | FlowMatchingHead:
    """The head that a config names, over fused tokens [B, H, dim] with H = horizon.

    Actions are normalised ones on both sides of it. `forward(fused, actions [B, H, A], is_pad bool [B, H], key)` gives
    the LossTerms, `sample(fused, key, generator)` float32 [B, H, A] with the gripper in [-1, 1]. Where a head needs
    random numbers they follow from `key`, int64 [B], one a sample; in `sample` a generator goes before the key.
    """
    if isinstance(config, RegressionHeadConfig):
        return RegressionHead(config, dim, spec)
    return FlowMatchingHead(config, dim, spec, horizon)
