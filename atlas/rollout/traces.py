"""Traces of episodes, from which films are made afterwards.

Which episodes deserve a film is known only when all have been played, and a picture takes almost as long to render as a
step takes to play. So an episode in a simulator leaves its states, a few hundred bytes per step, and is rendered
afterwards. Other environments leave pictures: the world's own, or the first camera's, or black ones.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from atlas.environments.environment import Environment, Pictured, Simulator, StepResult
from atlas.environments.scene_variation import AS_IT_IS, SceneVariation, VariableScene
from atlas.rollout.filming.attention_column import AttentionColumn, Look
from atlas.rollout.filming.decision_curves import DecisionCurve
from atlas.rollout.filming.films import FilmDrawing
from atlas.rollout.success_report import Verdict
from atlas.types import Observation

PICTURE_SIZE = 256  # the side of the filmed picture, pixels
_HOLD_SECONDS = 0.8  # the last picture stays this long, so that the outcome can be read
_SPARSE_HZ = 10.0  # pictures per second, at most, in a film with a limited number of pictures
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class Trace:
    """The T executed actions, and T + 1 scenes: one before each action and one at the end."""

    actions: np.ndarray  # float32 [T, A], in the ActionSpec's units, as the policy gave them
    scenes: np.ndarray | list[bytes]  # states float64 [T + 1, D]; JPEG pictures where there are no states
    executed: np.ndarray  # float32 [T, A], as the environment clipped them
    rewards: np.ndarray  # float32 [T]
    variation: SceneVariation = AS_IT_IS  # of the scene

    def __len__(self) -> int:
        return len(self.actions)


class TraceRecorder:
    """Keeps the trace of the episode that an environment has just begun."""

    def __init__(self, env: Environment, observation: Observation, variation: SceneVariation = AS_IT_IS) -> None:
        """observation: the first one. variation: of the scene, if it differs from the world's own."""
        self._env, self._variation = env, variation
        self._actions: list[np.ndarray] = []
        self._results: list[StepResult] = []
        self._states: list[np.ndarray] = []
        self._pictures: list[bytes] = []
        self._keep_scene(observation)

    def stepped(self, action: np.ndarray, result: StepResult) -> None:
        """Call after each step, with its action [A] and its result, which must have an observation unless the
        environment is a simulator."""
        self._actions.append(np.array(action, np.float32))
        self._results.append(replace(result, observation=None))
        self._keep_scene(result.observation)

    def trace(self) -> Trace:
        """The trace so far, of at least one step."""
        taken = [a if r.executed is None else r.executed for a, r in zip(self._actions, self._results, strict=True)]
        return Trace(
            np.stack(self._actions),
            np.stack(self._states) if self._states else self._pictures,
            np.stack(taken).astype(np.float32),
            np.array([r.reward for r in self._results], np.float32),
            self._variation,
        )

    def _keep_scene(self, observation: Observation | None) -> None:
        if isinstance(self._env, Simulator):
            self._states.append(self._env.get_state())
            return
        assert observation is not None
        encoded = io.BytesIO()
        ImageOps.pad(self._seen(observation), (PICTURE_SIZE, PICTURE_SIZE)).save(encoded, "JPEG", quality=_JPEG_QUALITY)
        self._pictures.append(encoded.getvalue())

    def _seen(self, observation: Observation) -> Image.Image:
        drawn = self._env.picture(PICTURE_SIZE) if isinstance(self._env, Pictured) else None
        if drawn is None:
            drawn = next(iter(observation.images.values()), np.zeros((PICTURE_SIZE, PICTURE_SIZE, 3), np.uint8))
        return Image.fromarray(drawn)


class Film(Protocol):
    """A film of finished episodes, made by a process that has the world."""

    @property
    def path(self) -> Path:
        """The mp4's path."""
        ...

    def __len__(self) -> int:
        """The number of steps that it shows."""
        ...

    def frames(self, env: Environment) -> tuple[np.ndarray, float]:
        """uint8 [T, H, W, 3] with even sides, and the frames per second. The environment is left in another state;
        reset it."""
        ...


@dataclass(frozen=True)
class FilmOrder:
    """A film of a finished episode, as an mp4 at `path`."""

    path: Path
    trace: Trace
    instruction: str
    verdict: Verdict
    most_pictures: int | None = None  # at most this many, evenly spaced; None: every step
    looks: tuple[Look, ...] = ()  # where the policy looked, drawn beside the pictures
    curves: tuple[DecisionCurve, ...] = ()  # of its decisions, drawn below the pictures

    def __len__(self) -> int:
        return len(self.trace)

    def frames(self, env: Environment) -> tuple[np.ndarray, float]:
        """See `Film.frames`."""
        spec, trace = env.spec.action_spec, self.trace
        every = _every(len(trace), spec.control_hz, self.most_pictures)
        drawing = FilmDrawing(self.instruction, trace.actions, spec, PICTURE_SIZE, self.curves)
        beside = AttentionColumn(self.looks, PICTURE_SIZE) if self.looks else None
        shown = [*range(0, len(trace), every), len(trace)]
        fps = spec.control_hz / every
        held = max(1, round(_HOLD_SECONDS * fps))
        height, width, _ = drawing.shape
        wide = width + (0 if beside is None else beside.width + beside.width % 2)
        frames = np.empty((len(shown) - 1 + held, height, wide, 3), np.uint8)
        frames[:] = drawing.ground
        for i, (step, picture) in enumerate(zip(shown, pictures_of(env, self, shown), strict=True)):
            last = step == len(trace)
            to = slice(i, None) if last else slice(i, i + 1)
            frames[to, :, :width] = drawing.last_frame(picture, self.verdict) if last else drawing.frame(picture, step)
            if beside is not None:
                top = drawing.picture_top
                frames[to, top : top + PICTURE_SIZE, width : width + beside.width] = beside.at(step)
        return frames, fps


def make_film(env: Environment, film: Film) -> None:
    """Render a film and write it. The environment is left in another state; reset it."""
    from atlas.tracking.media_values import write_mp4  # slow to import, and most workers make no films

    frames, fps = film.frames(env)
    write_mp4(film.path, frames, fps)


def _every(steps: int, control_hz: float, most: int | None) -> int:
    """The number of steps between two pictures; with a limit at least a tenth of a second's."""
    if most is None:
        return 1
    return max(1, round(control_hz / _SPARSE_HZ), math.ceil(steps / most))


def pictures_of(env: Environment, order: FilmOrder, numbers: list[int]) -> Iterator[np.ndarray]:
    """Pictures uint8 [size, size, 3] of the scenes with these numbers."""
    scenes = order.trace.scenes
    if not isinstance(scenes, np.ndarray):
        yield from (np.asarray(Image.open(io.BytesIO(scenes[number]))) for number in numbers)
        return
    assert isinstance(env, Simulator)
    if isinstance(env, VariableScene):
        env.vary(order.trace.variation)
    env.reset(init_state=scenes[0], instruction=order.instruction)  # the environment may be in another task's scene
    for number in numbers:
        env.set_state(scenes[number])
        yield env.picture(PICTURE_SIZE)
