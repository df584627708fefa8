"""The policy and what is saved with it."""

from atlas.policies.modular.policy import AtlasPolicy
from atlas.policies.processor import PolicyProcessor

__all__ = ["AtlasPolicy", "PolicyProcessor"]
