"""Cameras that deliver worse pictures, or old ones. Every world has these."""

from __future__ import annotations

import io
from collections import deque
from dataclasses import replace
from typing import ClassVar

import numpy as np
from PIL import Image, ImageFilter

from atlas.environments.environment import EnvironmentSpec
from atlas.environments.perturbations.perturbation import Category, Perturbation
from atlas.types import Observation

_BLUR = 0.006  # a level: the blur's radius, as a share of the picture's height
_JPEG_QUALITY = (60, 35, 20, 10, 5)
_BRIGHTER = 0.16  # a level
_NOISE = 7.0  # a level: the standard deviation, of 255
_DROPPED = 0.15  # a level: the share of pictures that do not arrive


class _OfPictures(Perturbation):
    """Changes each picture by itself."""

    category: ClassVar[Category] = "sensor_noise"
    visual = True

    def see(self, observation: Observation) -> Observation:
        images = {camera: self.changed(image) for camera, image in observation.images.items()}
        return replace(observation, images=images)

    def changed(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] in and out."""
        raise NotImplementedError


class Blur(_OfPictures):
    """A Gaussian blur with a radius of 0.6% of the picture's height a level."""

    def changed(self, image: np.ndarray) -> np.ndarray:
        blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(_BLUR * self.level * len(image)))
        return np.asarray(blurred)


class Jpeg(_OfPictures):
    """JPEG's quality is 60, 35, 20, 10, 5."""

    def changed(self, image: np.ndarray) -> np.ndarray:
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "JPEG", quality=_JPEG_QUALITY[self.level - 1])
        return np.asarray(Image.open(encoded))


class Brightness(_OfPictures):
    """All pixels are brighter or darker by 16% a level, what is beyond white cut off."""

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._factor = 1 + _BRIGHTER * level * float(rng.choice([-1.0, 1.0]))

    def changed(self, image: np.ndarray) -> np.ndarray:
        return np.clip(image * self._factor, 0, 255).astype(np.uint8)


class PixelNoise(_OfPictures):
    """Each pixel's number is off by a normal error, with a standard deviation of 7 of 255 a level."""

    def changed(self, image: np.ndarray) -> np.ndarray:
        noise = self.rng.normal(0.0, _NOISE * self.level, image.shape)
        return np.clip(image + noise, 0, 255).astype(np.uint8)


class DroppedFrames(Perturbation):
    """15% a level of the pictures do not arrive: the last ones are seen once more. The first always arrive."""

    category, visual = "sensor_noise", True

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._last: dict[str, np.ndarray] | None = None

    def see(self, observation: Observation) -> Observation:
        dropped = self.rng.random() < _DROPPED * self.level
        if self._last is None or not dropped:
            self._last = observation.images
        return replace(observation, images=self._last)


class LateFrames(Perturbation):
    """Pictures are as many steps old as the level says; what the robot says of itself is not."""

    category, visual, every_step = "sensor_noise", True, True

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._frames: deque[dict[str, np.ndarray]] = deque(maxlen=level + 1)

    def see(self, observation: Observation) -> Observation:
        self._frames.append(observation.images)
        return replace(observation, images=self._frames[0])
