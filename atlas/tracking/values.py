"""Values made safe once for every sink: no sink fails on what these functions return.

TensorBoard fails on str, None and tensors of several elements; wandb on NaN in histograms, on columns of mixed
types and on whatever does not serialise. Every function raises TypeError or ValueError that names the metric.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas.tracking.records import Histogram, Image, Table

_BINS = 64


def to_float(name: str, value: Any) -> float:
    """A Python number, numpy scalar or 0-d array or tensor (bf16 too) as a float; NaN and infinities are kept.

    Raises TypeError that names the metric for anything else: str, None, complex, several elements.
    """
    try:
        if type(value) is float or type(value) is int:  # the usual case, ten times as fast to check
            return float(value)
        if isinstance(value, numbers.Real):
            return float(value)
        if _is_tensor(value):
            if value.ndim == 0 and not value.is_complex():
                return float(value.item())
        elif isinstance(value, np.ndarray | np.generic) and value.ndim == 0 and value.dtype.kind not in "cOSUMm":
            return float(value)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise TypeError(f"metric '{name}': {value!r} cannot be read as a number ({error})") from None
    raise TypeError(f"metric '{name}' must be one number, not {_kind(value)}")


def to_array(name: str, values: Any) -> np.ndarray:
    """Numbers in any array, tensor or nested list as a numpy array on the CPU (bf16 becomes float32)."""
    if _is_tensor(values):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.float() if values.element_size() < 8 else values
        values = values.numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"'{name}' must hold real numbers, not {_kind(values)}")
    return array


def to_image(name: str, image: Any, step: int) -> Image:
    """A uint8 [H, W, 3] array or tensor as a record, copied."""
    pixels = to_array(name, image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise TypeError(f"image '{name}' must be uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    return Image(name, pixels.copy(), step)


def to_frames(name: str, frames: Any) -> np.ndarray:
    """A uint8 [T, H, W, 3] array or tensor, or a list of images, as one array."""
    array = to_array(name, frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
        raise TypeError(f"video '{name}' must be uint8 [T, H, W, 3], not {array.dtype} {list(array.shape)}")
    return array


def to_histogram(name: str, values: Any, step: int) -> Histogram:
    """The finite values counted in 64 bins. Raises ValueError if there are none."""
    array = to_array(name, values).astype(np.float64).ravel()
    array = array[np.isfinite(array)]
    if not array.size:
        raise ValueError(f"histogram '{name}' has no finite values")
    counts, edges = np.histogram(array, bins=_BINS)
    return Histogram(
        name=name,
        counts=counts,
        edges=edges,
        minimum=float(array.min()),
        maximum=float(array.max()),
        number=array.size,
        total=float(array.sum()),
        total_squares=float((array * array).sum()),
        step=step,
    )


def to_table(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> Table:
    """Rows of plain cells. A column of several kinds becomes text. Raises ValueError for rows of the wrong length."""
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"table '{name}' has {len(columns)} columns and a row of {len(row)} cells")
    cells = [[_cell(cell) for cell in row] for row in rows]
    for column in range(len(columns)):
        kinds = {type(row[column]) for row in cells} - {type(None)}
        if kinds == {int, float}:
            _convert(cells, column, float)
        elif len(kinds) > 1:
            _convert(cells, column, str)
    return Table(name, [str(column) for column in columns], cells, step)


def _convert(cells: list[list[Any]], column: int, kind: type) -> None:
    for row in cells:
        if row[column] is not None:
            row[column] = kind(row[column])


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        return to_float("cell", value)
    except TypeError:  # not a number: shown as text
        return str(value)


def _is_tensor(value: Any) -> bool:
    # A tensor cannot exist before torch is imported, so this check need not import it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    of_shape = f" of shape {list(shape)}" if shape is not None else ""
    return f"{type(value).__name__}{of_shape}"
