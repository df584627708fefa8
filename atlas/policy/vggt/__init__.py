"""VGGT: the published aggregator of views, and small forms of it that train from scratch."""

from atlas.policy.vggt.aggregator import VGGTAggregator
from atlas.policy.vggt.config import VGGTConfig

__all__ = ["VGGTAggregator", "VGGTConfig"]
