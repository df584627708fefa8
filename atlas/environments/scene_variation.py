"""What of a simulated scene can differ from training's, as plain data: a world applies it at its next reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

# What a world may let others change; `EnvironmentSpec.variable` says which of it a world does.
Part = Literal["camera", "light", "table", "background", "distractors", "placement", "start_pose", "goal"]
Shape = Literal["sphere", "box", "cylinder"]
# What counts as success: the named object lifted; pushed along the table and not lifted; nothing touched at all.
Goal = Literal["lift", "push", "leave"]
Colour = tuple[float, float, float]  # red, green, blue; as a colour from 0 to 1, as a factor from 0 up
WHITE: Colour = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class CameraShift:
    """Cameras that stand in the scene go round the point that they look at; those on the robot are only turned.

    around, up: angles in radians of that way, along the table and upwards; distance: a factor. turn: axis-angle in the
    camera's own frame, radians. field: a factor of the field of view's angle.
    """

    around: float = 0.0
    up: float = 0.0
    distance: float = 1.0
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    field: float = 1.0

    def also(self, other: CameraShift) -> CameraShift:
        """Both at once; turns are small enough to be added."""
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
    """around, tilt: where the lamp stands, radians: round the vertical, and away from it. colour, intensity: factors.
    shadows: whether things throw any."""

    around: float = 0.0
    tilt: float = 0.0
    colour: Colour = WHITE
    intensity: float = 1.0
    shadows: bool = False

    def also(self, other: LightShift) -> LightShift:
        """Both at once: the lamp stands where the one that is tilted more has it."""
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
    """colour: factors. pattern: the seed of a pattern that is drawn over the texture; opacity: from 0 to 1."""

    colour: Colour = WHITE
    pattern: int | None = None
    opacity: float = 0.0

    def also(self, other: Surface) -> Surface:
        """Both at once: of two patterns the second one."""
        drawn = self if other.pattern is None else other
        return Surface(_product(self.colour, other.colour), drawn.pattern, drawn.opacity)


@dataclass(frozen=True)
class Distractor:
    """A thing that stands on the table and is seen, and not felt. size: half of its extent along x, y and z, m; place:
    from the table's centre, m."""

    shape: Shape
    size: tuple[float, float, float]
    colour: Colour
    place: tuple[float, float]


@dataclass(frozen=True)
class SceneVariation:
    """The scene of an episode, where it differs from the world's own. With no arguments it does not.

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
        """Both at once; of two placements, or goals, the second one."""
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
    """An environment whose scene can be made another one."""

    def vary(self, variation: SceneVariation) -> None:
        """From the next reset on the scene is so, until it is varied again. Of a variation only those parts may be set
        that are among the spec's `variable` ones."""
        ...
