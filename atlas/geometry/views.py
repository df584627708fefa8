"""Images from files, in the form that the published VGGT was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from atlas.errors import InputError

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_WHITE = 255


@dataclass(frozen=True)
class View:
    """A picture as the model sees it: uint8 [H, W, 3], in which the rows outside `rows` are white padding."""

    path: Path
    pixels: np.ndarray
    rows: slice


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files, with each folder replaced by its images, sorted by name. Raises InputError if there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"images: the folder {path} holds no images ({', '.join(_SUFFIXES)}).")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"images: there is no file or folder {path}.")
    if not found:
        raise InputError("images: none were given; name one or more image files, or a folder of them.")
    return found


def read_views(paths: Sequence[Path], size: int, patch: int) -> list[View]:
    """Files as views of one height H and width W = size, both multiples of `patch`.

    Each image is resized (bicubic) to the width `size`, its height to the nearest multiple of `patch`; what is higher
    than wide is cropped to its middle `size` rows. This is VGGT's published preprocessing. If the heights differ, the
    lower ones are padded with white to the highest, equally above and below, which leaves the cameras' axes in the
    middle. Raises InputError that names a file that is not an image.
    """
    pictures = [_fit(_read(path), size, patch) for path in paths]
    height = max(len(picture) for picture in pictures)
    views = []
    for path, picture in zip(paths, pictures, strict=True):
        top = (height - len(picture)) // 2
        pixels = np.full((height, size, 3), _WHITE, dtype=np.uint8)
        rows = slice(top, top + len(picture))
        pixels[rows] = picture
        views.append(View(path, pixels, rows))
    return views


def _read(path: Path) -> Image.Image:
    """An image file, upright, in RGB; transparent parts become white."""
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all that Pillow raises
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"images: {path} cannot be read as an image: {why}") from None
    if image.mode[0] in "IF":
        raise InputError(
            f"images: {path} has one channel of mode {image.mode}, as depth images have; give a picture with 8 bits."
        )
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (_WHITE,) * 4), image)
    return image.convert("RGB")


def _fit(image: Image.Image, size: int, patch: int) -> np.ndarray:
    """An image as uint8 [h, size, 3] with h at most `size`, a multiple of `patch`."""
    height = max(1, round(image.height * size / image.width / patch)) * patch
    pixels = np.asarray(image.resize((size, height), Image.Resampling.BICUBIC))
    top = max(0, (height - size) // 2)
    return pixels[top : top + min(height, size)]
