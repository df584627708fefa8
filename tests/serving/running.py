"""A policy server in a thread of this process, and observations for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from atlas.policies.processor import PolicyProcessor
from atlas.serving.access import Access
from atlas.serving.policy_service import ServedActor
from atlas.serving.server import ServerSettings, serving_in_a_thread
from atlas.types import Observation
from tests.policies.test_policy import HORIZON, SIZE, make_processor

LOCAL = Access(port=0)


class TellingActor:
    """Its actions say what it was told: [the session's seed, how often it has asked, the first pixel, the first
    number of the state, the number of sessions planned together, …]. An instruction of `fail` makes it fail."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.processor: PolicyProcessor = make_processor()
        self.seeds: dict[int, int] = {}
        self.asked: dict[int, int] = {}
        self.batches: list[int] = []
        self._seconds = seconds

    def reset(self, episode: int, seed: int) -> None:
        self.seeds[episode], self.asked[episode] = seed, 0

    def forget(self, episode: int) -> None:
        self.seeds.pop(episode, None)
        self.asked.pop(episode, None)

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        time.sleep(self._seconds)
        self.batches.append(len(observations))
        return {number: self._chunk(number, seen, len(observations)) for number, seen in observations.items()}

    def _chunk(self, number: int, seen: Observation, together: int) -> np.ndarray:
        if seen.instruction == "fail":
            raise ArithmeticError("as it was told to")
        self.asked[number] += 1
        told = [
            self.seeds[number],
            self.asked[number],
            next(iter(seen.images.values()))[0, 0, 0],
            seen.proprio[0],
            together,
        ]
        chunk = np.zeros((HORIZON, 7), np.float32)
        chunk[:, :5] = told
        chunk[:, 5] = np.nan if seen.instruction == "nan" else 0
        chunk[:, 6] = np.arange(HORIZON)
        return chunk


@contextmanager
def running(actor: ServedActor, settings: ServerSettings | None = None) -> Iterator[int]:
    """Serves an actor in another thread; gives the port."""
    with serving_in_a_thread(actor, settings or ServerSettings(access=LOCAL)) as port:
        yield port


def seen(pixel: int = 7, state: float = 0.5, instruction: str = "go") -> Observation:
    images = {camera: np.full((SIZE, SIZE, 3), pixel, np.uint8) for camera in ("agentview", "eye_in_hand")}
    return Observation(images, np.full(8, state, np.float32), instruction)


def libero_message(pixel: int = 7, state: float = 0.5, instruction: str = "go") -> dict[str, Any]:
    """As openpi's client of LIBERO calls things."""
    image = np.full((SIZE, SIZE, 3), pixel, np.uint8)
    return {
        "observation/image": image,
        "observation/wrist_image": image + 1,
        "observation/state": np.full(8, state),
        "prompt": instruction,
    }
