"""VGGT: the published aggregator of views, and small forms of it that train from scratch."""

from atlas.policies.vggt.aggregator import VGGTAggregator
from atlas.policies.vggt.sizes import VGGTConfig

__all__ = ["VGGTAggregator", "VGGTConfig"]
