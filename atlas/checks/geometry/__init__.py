"""What VGGT sees in some images: `atlas model geometry`."""

from atlas.checks.geometry.report import geometry

__all__ = ["geometry"]
