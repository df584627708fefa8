"""The policy and what is saved with it."""

from atlas.policy.policy import AtlasPolicy
from atlas.policy.processor import PolicyProcessor

__all__ = ["AtlasPolicy", "PolicyProcessor"]
