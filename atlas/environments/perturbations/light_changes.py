"""A lamp in another place, with another colour or intensity, or with shadows."""

from __future__ import annotations

import colorsys
from typing import ClassVar

import numpy as np

from atlas.environments.perturbations.perturbation import Category, Perturbation
from atlas.environments.scene_variation import LightShift, Part, SceneVariation

_TILT_DEG = 14.0  # per level, from straight above
_COLOUR = 0.14  # per level, the share of the light that takes the colour
_STOPS = 0.3  # per level, in powers of two
_SHADOW_TILT_DEG = 12.0


class _OfLight(Perturbation):
    category: ClassVar[Category] = "light_conditions"
    visual = True
    needs: ClassVar[frozenset[Part]] = frozenset({"light"})


class LightDirection(_OfLight):
    """The lamp shines from the side, tilted by 14 degrees per level."""

    def variation(self) -> SceneVariation:
        around = float(self.rng.uniform(-np.pi, np.pi))
        return SceneVariation(light=LightShift(around=around, tilt=float(np.deg2rad(_TILT_DEG) * self.level)))


class LightColour(_OfLight):
    """The light takes on a colour, by 14% per level."""

    def variation(self) -> SceneVariation:
        share = _COLOUR * self.level
        red, green, blue = (1 - share * (1 - part) for part in colorsys.hsv_to_rgb(float(self.rng.uniform()), 1.0, 1.0))
        return SceneVariation(light=LightShift(colour=(red, green, blue)))


class LightIntensity(_OfLight):
    """The light is darker or brighter by 0.3 stops per level."""

    def variation(self) -> SceneVariation:
        sign = float(self.rng.choice([-1.0, 1.0]))
        return SceneVariation(light=LightShift(intensity=2 ** (_STOPS * self.level * sign)))


class LightShadows(_OfLight):
    """Things cast shadows, which grow longer with each level."""

    def variation(self) -> SceneVariation:
        around = float(self.rng.uniform(-np.pi, np.pi))
        tilt = float(np.deg2rad(_SHADOW_TILT_DEG) * self.level)
        return SceneVariation(light=LightShift(around=around, tilt=tilt, shadows=True))
