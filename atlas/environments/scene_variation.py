"""Differences of a simulated scene from that of training, as plain data: a world applies it at its next reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

# The parts of a scene that may be changed; `EnvironmentSpec.variable` says which of them a world supports.
Part = Literal["camera", "light", "table", "background", "distractors", "placement", "start_pose", "goal"]
Shape = Literal["sphere", "box", "cylinder"]
# What counts as success: the named object lifted; pushed along the table and not lifted; nothing touched at all.
Goal = Literal["lift", "push", "leave"]
Colour = tuple[float, float, float]  # red, green, blue: as a colour from 0 to 1, as factors from 0 up
WHITE: Colour = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class CameraShift:
    """Cameras that stand in the scene move around the point that they look at; those on the robot are only turned.

    around, up: angles of this movement along the table and upwards, radians. distance: a factor. turn: axis-angle in
    the camera's own frame, radians. field: a factor of the field of view's angle.
    """

    around: float = 0.0
    up: float = 0.0
    distance: float = 1.0
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    field: float = 1.0

    def also(self, other: CameraShift) -> CameraShift:
        """Both at once; the turns are small enough to add."""
        x, y, z = (a + b for a, b in zip(self.turn, other.turn, strict=True))
        return CameraShift(
            self.around + other.around,
            self.up + other.up,
            self.distance * other.distance,
            (x, y, z),
            self.field * other.field,
        )


@dataclass(frozen=True)
class LightShift:
    """around, tilt: the lamp's angles around the vertical and away from it, radians. colour, intensity: factors.
    shadows: whether things cast shadows."""

    around: float = 0.0
    tilt: float = 0.0
    colour: Colour = WHITE
    intensity: float = 1.0
    shadows: bool = False

    def also(self, other: LightShift) -> LightShift:
        """Both at once; the lamp stands where the shift with the larger tilt puts it."""
        placed = max(self, other, key=lambda shift: shift.tilt)
        return LightShift(
            placed.around,
            placed.tilt,
            _product(self.colour, other.colour),
            self.intensity * other.intensity,
            self.shadows or other.shadows,
        )


@dataclass(frozen=True)
class Surface:
    """colour: factors. pattern: the seed of a pattern drawn over the texture. opacity: the pattern's, from 0 to 1."""

    colour: Colour = WHITE
    pattern: int | None = None
    opacity: float = 0.0

    def also(self, other: Surface) -> Surface:
        """Both at once; of two patterns the second counts."""
        drawn = self if other.pattern is None else other
        return Surface(_product(self.colour, other.colour), drawn.pattern, drawn.opacity)


@dataclass(frozen=True)
class Distractor:
    """A thing that stands on the table, and is seen but not felt. size: half of its extent along x, y and z, m. place:
    relative to the table's centre, m."""

    shape: Shape
    size: tuple[float, float, float]
    colour: Colour
    place: tuple[float, float]


@dataclass(frozen=True)
class SceneVariation:
    """The differences of an episode's scene from the world's own; by default there are none.

    placement: the objects lie in the square ring between these two half sides around the table's centre, m. start_pose:
    added to the arm's joint angles at the start, radians.
    """

    camera: CameraShift | None = None
    light: LightShift | None = None
    table: Surface | None = None
    background: Surface | None = None
    distractors: tuple[Distractor, ...] = ()
    placement: tuple[float, float] | None = None
    start_pose: tuple[float, ...] | None = None
    goal: Goal = "lift"

    def also(self, other: SceneVariation) -> SceneVariation:
        """Both at once; of two placements or goals the second counts."""
        start = self.start_pose or other.start_pose
        if self.start_pose is not None and other.start_pose is not None:
            start = tuple(a + b for a, b in zip(self.start_pose, other.start_pose, strict=True))
        return SceneVariation(
            camera=_both(self.camera, other.camera),
            light=_both(self.light, other.light),
            table=_both(self.table, other.table),
            background=_both(self.background, other.background),
            distractors=self.distractors + other.distractors,
            placement=other.placement or self.placement,
            start_pose=start,
            goal=self.goal if other.goal == "lift" else other.goal,
        )


_S = TypeVar("_S", CameraShift, LightShift, Surface)


def _both(first: _S | None, second: _S | None) -> _S | None:
    return first.also(second) if first is not None and second is not None else first or second


def _product(first: Colour, second: Colour) -> Colour:
    return first[0] * second[0], first[1] * second[1], first[2] * second[2]


AS_IT_IS = SceneVariation()


@runtime_checkable
class VariableScene(Protocol):
    """An environment whose scene can be varied."""

    def vary(self, variation: SceneVariation) -> None:
        """Vary the scene from the next reset on, until the next call. The variation may set only parts that are in the
        spec's `variable`."""
        ...
