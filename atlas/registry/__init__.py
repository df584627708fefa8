"""From a reference to a verified local directory."""

from atlas.registry.local import resolve_policy

__all__ = ["resolve_policy"]
