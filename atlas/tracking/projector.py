"""Points for TensorBoard's projector: files beside the event files, which the plugin finds through one text file.

SummaryWriter.add_embedding forgets what an earlier segment of a resumed run wrote, and prints to stdout.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlas.system.files import atomic_path, write_text
from atlas.tracking.records import Projection
from atlas.tracking.values import to_array

_FOLDER = "projector"
_CONFIG = "projector_config.pbtxt"  # the name that the plugin looks for
_ENTRY = "entry.pbtxt"  # in each folder: its part of that file
_SPRITE_SIDE = 8192  # pixels that browsers take
_DIGITS = "%.5g"


def to_projection(
    name: str, points: Any, columns: Sequence[str], rows: Sequence[Sequence[Any]], thumbnails: Any, step: int
) -> Projection:
    """A checked record. Raises TypeError or ValueError that names it if the parts do not fit together."""
    array = to_array(name, points).astype(np.float32)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"'{name}' must hold finite points [N, D], not {list(array.shape)}")
    if len(rows) != len(array) or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"'{name}' has {len(array)} points, so it needs as many rows of {len(columns)} cells")
    pictures = None if thumbnails is None else to_array(name, thumbnails)
    if pictures is not None and (
        pictures.dtype != np.uint8 or pictures.ndim != 4 or len(pictures) != len(array) or pictures.shape[3] != 3
    ):
        raise ValueError(f"'{name}' needs thumbnails uint8 [{len(array)}, h, w, 3], not {list(pictures.shape)}")
    return Projection(name, array, list(columns), [[_cell(cell) for cell in row] for row in rows], pictures, step)


def write_projection(log_dir: Path, projection: Projection) -> None:
    """Write a projection's files into `<log_dir>/projector/<name>/<step>/`, and tell the plugin about all that exist,
    including those from an earlier segment of the run."""
    place = f"{_FOLDER}/{projection.name}/{projection.step:08d}"
    folder = log_dir / place
    text = io.StringIO()
    np.savetxt(text, projection.points, fmt=_DIGITS, delimiter="\t")
    write_text(folder / "tensors.tsv", text.getvalue())
    # The plugin takes the first line as a header only if there are several columns.
    lines = ([projection.columns] if len(projection.columns) > 1 else []) + list(projection.rows)
    write_text(folder / "metadata.tsv", "".join("\t".join(line) + "\n" for line in lines))
    entry = {
        "tensor_name": json.dumps(f"{projection.name}, step {projection.step}"),
        "tensor_path": json.dumps(f"{place}/tensors.tsv"),
        "metadata_path": json.dumps(f"{place}/metadata.tsv"),
    }
    sprite = _sprite(projection.thumbnails)
    if sprite is not None and projection.thumbnails is not None:
        with atomic_path(folder / "sprite.png") as partial:
            sprite.save(partial, "PNG")
        height, width = projection.thumbnails.shape[1:3]
        sizes = f"single_image_dim: {width} single_image_dim: {height}"
        entry["sprite"] = f"{{ image_path: {json.dumps(f'{place}/sprite.png')} {sizes} }}"
    fields = "".join(f"  {key}: {value}\n" for key, value in entry.items())
    write_text(folder / _ENTRY, f"embeddings {{\n{fields}}}\n")
    entries = [path.read_text(encoding="utf-8") for path in sorted((log_dir / _FOLDER).rglob(_ENTRY))]
    write_text(log_dir / _CONFIG, "".join(entries))


def _sprite(thumbnails: np.ndarray | None) -> Any:
    """All thumbnails [N, h, w, 3] in the rows of one square PIL image; None if it would be too large."""
    from PIL import Image

    if thumbnails is None:
        return None
    number, height, width, _ = thumbnails.shape
    side = int(np.ceil(number**0.5))
    if side * max(height, width) > _SPRITE_SIDE:
        return None
    cells = np.zeros((side * side, height, width, 3), np.uint8)
    cells[:number] = thumbnails
    picture = cells.reshape(side, side, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(picture.reshape(side * height, side * width, 3))


def _cell(value: Any) -> str:
    return str(value).replace("\t", " ").replace("\n", " ")
