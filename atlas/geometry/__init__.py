"""The geometry that VGGT sees in some images: `atlas model geometry`."""

from atlas.geometry.scene_page import geometry

__all__ = ["geometry"]
