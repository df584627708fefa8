"""Other textures and colours of the table and the background."""

from __future__ import annotations

import colorsys

import numpy as np

from atlas.environments.perturbations.perturbation import Perturbation
from atlas.environments.scene_variation import Colour, SceneVariation, Surface

# The share of the surface's colour that changes: an offset, and per level. A table in bright light would hardly show
# less than the first level's.
_COLOUR_FIRST, _COLOUR = 0.12, 0.12
_OPACITY = 0.2  # per level, of a pattern over the texture


class TableTexture(Perturbation):
    """A pattern lies over the table's texture, with an opacity of 20% per level."""

    category, visual, needs = "background_textures", True, frozenset({"table"})

    def variation(self) -> SceneVariation:
        return SceneVariation(table=Surface(pattern=_pattern(self.rng), opacity=_OPACITY * self.level))


class TableColour(Perturbation):
    """The table takes on another colour, by 24% at the first level and 12% more per further level."""

    category, visual, needs = "background_textures", True, frozenset({"table"})

    def variation(self) -> SceneVariation:
        return SceneVariation(table=Surface(colour=_towards_colour(self.rng, self.level)))


class Background(Perturbation):
    """Floor and walls take on a pattern, with an opacity of 20% per level, and a colour as TableColour does."""

    category, visual, needs = "background_textures", True, frozenset({"background"})

    def variation(self) -> SceneVariation:
        colour = _towards_colour(self.rng, self.level)
        return SceneVariation(background=Surface(colour, _pattern(self.rng), _OPACITY * self.level))


def _pattern(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _towards_colour(rng: np.random.Generator, level: int) -> Colour:
    """Factors of red, green and blue, which move with the level from 1 towards a colour of random hue."""
    share = _COLOUR_FIRST + _COLOUR * level
    full = colorsys.hsv_to_rgb(float(rng.uniform()), float(rng.uniform(0.8, 1.0)), float(rng.uniform(0.4, 1.0)))
    red, green, blue = (1 - share * (1 - part) for part in full)
    return red, green, blue
