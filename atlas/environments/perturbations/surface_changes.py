"""The table, and what is behind it, have other textures and colours."""

from __future__ import annotations

import colorsys

import numpy as np

from atlas.environments.perturbations.perturbation import Perturbation
from atlas.environments.scene_variation import Colour, SceneVariation, Surface

# The share that takes the colour: at first, and a level. A table in bright light shows less than the first level's.
_COLOUR_FIRST, _COLOUR = 0.12, 0.12
_OPACITY = 0.2  # a level, of a pattern over the texture


class TableTexture(Perturbation):
    """A pattern lies over the table's texture, with an opacity of 20% a level."""

    category, visual, needs = "background_textures", True, frozenset({"table"})

    def variation(self) -> SceneVariation:
        return SceneVariation(table=Surface(pattern=_pattern(self.rng), opacity=_OPACITY * self.level))


class TableColour(Perturbation):
    """The table takes another colour: by 24% at the first level, and 12% more a level."""

    category, visual, needs = "background_textures", True, frozenset({"table"})

    def variation(self) -> SceneVariation:
        return SceneVariation(table=Surface(colour=_towards_colour(self.rng, self.level)))


class Background(Perturbation):
    """Floor and walls take a pattern, of 20% a level, and a colour as the table does."""

    category, visual, needs = "background_textures", True, frozenset({"background"})

    def variation(self) -> SceneVariation:
        colour = _towards_colour(self.rng, self.level)
        return SceneVariation(background=Surface(colour, _pattern(self.rng), _OPACITY * self.level))


def _pattern(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _towards_colour(rng: np.random.Generator, level: int) -> Colour:
    """Factors of red, green and blue that go from 1 to those of a colour of random hue."""
    share = _COLOUR_FIRST + _COLOUR * level
    full = colorsys.hsv_to_rgb(float(rng.uniform()), float(rng.uniform(0.8, 1.0)), float(rng.uniform(0.4, 1.0)))
    red, green, blue = (1 - share * (1 - part) for part in full)
    return red, green, blue
