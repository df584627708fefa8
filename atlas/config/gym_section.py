"""`evaluation.gym`: how a gymnasium environment's observations, actions and success are read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from atlas.config.action_sections import SourceGroupConfig, StateRotations
from atlas.config.section import Positive, Section

Rate = Annotated[float, Field(gt=0)]


class GymConfig(Section):
    """Settings that are left out follow from the environment's spaces. Parts of nested observations are named with
    dots."""

    # Our camera: the part of the observation with its image; `render` is the picture that the environment draws.
    cameras: dict[str, str] | None = None  # null: every image, under its own name
    proprio: list[str] | None = None  # parts of the observation, joined; null: all that are numbers
    proprio_rotations: StateRotations = []  # of the joined numbers: as data.features.proprio_rotations has them
    action: Annotated[list[SourceGroupConfig], Field(min_length=1)] | None = None  # all columns in order; null: `other`
    clip: bool = True  # actions to the bounds of their space; false where it states others than hold
    # A key of info; `terminated`: that the episode ends before its time; a number: the sum of rewards to reach.
    # null: `is_success` or `success` in info, otherwise the sum of rewards that the environment was registered with.
    success: str | float | None = None
    instruction: str | None = None  # what a policy is told; null: nothing
    control_hz: Rate | None = None  # null: `render_fps` of the environment's metadata, otherwise 20
    horizon: Positive | None = None  # steps; null: the environment's own limit, otherwise 1000
    make: dict[str, Any] = {}  # arguments for gymnasium.make
