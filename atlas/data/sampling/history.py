"""Earlier observations: the frames that a policy looks at, in training, in rollouts and on a robot alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atlas.data.episode import Episode
from atlas.types import Observation


@dataclass(frozen=True)
class History:
    """A policy sees `steps` frames, `stride` control steps apart, the last of which is the present one. Before an
    episode's first frame there is that frame again."""

    steps: int = 1
    stride: int = 1

    @property
    def reach(self) -> int:
        """The number of control steps since the earliest frame."""
        return (self.steps - 1) * self.stride

    @property
    def ago(self) -> np.ndarray:
        """int64 [steps]: how many control steps ago each frame is, the earliest first."""
        return np.arange(self.steps - 1, -1, -1) * self.stride

    def frames(self, frame: int) -> list[int]:
        """The frames of an episode that are seen at one of them, the earliest first."""
        return np.maximum(frame - self.ago, 0).tolist()

    def of(self, seen: Sequence[Observation]) -> Observation:
        """The last of the observations [n], one a control step from an episode's start on or the last `reach` + 1 of
        them, with those before it that a policy looks at."""
        last = len(seen) - 1
        return replace(seen[last], past=tuple(seen[place] for place in self.frames(last)[:-1]))

    def to_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "stride": self.stride}

    @classmethod
    def from_dict(cls, values: Any) -> History:
        """The inverse of `to_dict`. Raises TypeError or ValueError for any other form."""
        found = cls(**values)
        if not all(type(n) is int and 1 <= n <= 1000 for n in (found.steps, found.stride)):
            raise ValueError(f"history is {values!r}, expected steps and stride from 1 on")
        return found


ONE_FRAME = History()


class SeenFrames:
    """The frames of a running episode, as many of the last ones as a policy looks at."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._seen: deque[Observation] = deque(maxlen=history.reach + 1)

    @property
    def every_step(self) -> bool:
        """Whether every control step must be seen, not only those at which the policy is asked."""
        return self._history.steps > 1

    def add(self, observation: Observation) -> None:
        """Add what is seen in the next control step."""
        self._seen.append(observation)

    def latest(self) -> Observation:
        """The last one, with the earlier ones that a policy looks at."""
        return self._history.of(self._seen)


def recorded_observations(
    episode: Episode,
    frames: Iterable[int],
    cameras: Sequence[str],
    history: History,
    instructions: Sequence[str] | None = None,
) -> list[Observation]:
    """Return the observations at some frames of a recording. instructions: one a frame of the episode; None: the
    episode's own."""
    wanted = list(frames)
    needed = sorted({f for frame in wanted for f in history.frames(frame)})
    images = {camera: episode.images(camera, needed) for camera in cameras}
    proprio = episode.proprio
    at = {
        frame: Observation(
            {camera: images[camera][place] for camera in cameras},
            np.array(proprio[frame]),
            episode.instruction if instructions is None else instructions[frame],
        )
        for place, frame in enumerate(needed)
    }
    return [replace(at[frame], past=tuple(at[f] for f in history.frames(frame)[:-1])) for frame in wanted]
