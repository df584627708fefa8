"""Cameras that deliver degraded images, or old ones. Every world supports these."""

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

_BLUR = 0.006  # per level: the blur's radius, as a share of the image's height
_JPEG_QUALITY = (60, 35, 20, 10, 5)
_BRIGHTER = 0.16  # per level
_NOISE = 7.0  # per level: the standard deviation, of 255
_DROPPED = 0.15  # per level: the share of images that do not arrive


class _OfPictures(Perturbation):
    """Changes each image by itself."""

    category: ClassVar[Category] = "sensor_noise"
    visual = True

    def see(self, observation: Observation) -> Observation:
        images = {camera: self.changed(image) for camera, image in observation.images.items()}
        return replace(observation, images=images)

    def changed(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] in and out."""
        raise NotImplementedError


class Blur(_OfPictures):
    """A Gaussian blur with a radius of 0.6% of the image's height per level."""

    def changed(self, image: np.ndarray) -> np.ndarray:
        blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(_BLUR * self.level * len(image)))
        return np.asarray(blurred)


class Jpeg(_OfPictures):
    """JPEG compression with quality 60, 35, 20, 10 or 5."""

    def changed(self, image: np.ndarray) -> np.ndarray:
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "JPEG", quality=_JPEG_QUALITY[self.level - 1])
        return np.asarray(Image.open(encoded))


class Brightness(_OfPictures):
    """All pixels are brighter or darker by 16% per level, clipped at white."""

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._factor = 1 + _BRIGHTER * level * float(rng.choice([-1.0, 1.0]))

    def changed(self, image: np.ndarray) -> np.ndarray:
        return np.clip(image * self._factor, 0, 255).astype(np.uint8)


class PixelNoise(_OfPictures):
    """Adds a normal error to each pixel's numbers, with a standard deviation of 7 of 255 per level."""

    every_step = True  # an error is drawn per step, however many actions are executed between two looks

    def changed(self, image: np.ndarray) -> np.ndarray:
        noise = self.rng.normal(0.0, _NOISE * self.level, image.shape)
        return np.clip(image + noise, 0, 255).astype(np.uint8)


class DroppedFrames(Perturbation):
    """15% of the images per level do not arrive, and the last ones are shown again. The first always arrive."""

    category, visual, every_step = "sensor_noise", True, True

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._last: dict[str, np.ndarray] | None = None

    def see(self, observation: Observation) -> Observation:
        dropped = self.rng.random() < _DROPPED * self.level
        if self._last is None or not dropped:
            self._last = observation.images
        return replace(observation, images=self._last)


class LateFrames(Perturbation):
    """Images are one step old per level; the proprio is current."""

    category, visual, every_step = "sensor_noise", True, True

    def __init__(self, level: int, rng: np.random.Generator, spec: EnvironmentSpec) -> None:
        super().__init__(level, rng, spec)
        self._frames: deque[dict[str, np.ndarray]] = deque(maxlen=level + 1)

    def see(self, observation: Observation) -> Observation:
        self._frames.append(observation.images)
        return replace(observation, images=self._frames[0])
