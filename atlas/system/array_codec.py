"""Arrays in msgpack, in the forms that clients of policy servers use; whatever arrives is checked before it is made.

Three forms are in use, and a server that reads one of them breaks the clients of the others, so all are read:

    openpi    {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}, numbers {b"__npgeneric__": …}
    vla-eval  the same with keys of text, and images as {"__image__": True, "format": "png", "data": bytes, …}
    GR00T     {"__ndarray_class__": True, "as_npy": bytes} until N1.6, then msgpack-numpy's {b"nd": True, b"type": …}

Nothing is executed: arrays of objects, which these formats would unpickle, are refused.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from atlas.errors import InputError, first_line

Form = Literal["openpi", "vla-eval", "groot-npy", "groot-nd"]

_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")
_MOST_DIMENSIONS = 8
_MOST_VALUES = 100_000  # in lists and mappings, of one message; arrays count as one
_MOST_PIXELS = 64 * 2**20  # of an image that arrives compressed
_NPY_HEADER = re.compile(r"\{'descr': '(.{1,10})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,200})\), \}\s*")
_NUMBER = re.compile(r"\d{1,18}")


def unpack(frame: bytes) -> Any:
    """The value of a frame; its arrays are read-only.

    Raises InputError for what is no msgpack, has an array that is not as it says, or so many small values that Python
    would need many times the frame's memory for them.
    """
    import msgpack

    seen = 0

    def counted(values: Any) -> Any:
        nonlocal seen
        seen += 1 + len(values)
        if seen > _MOST_VALUES:
            raise InputError(f"The message holds more than {_MOST_VALUES} values; send images and numbers as arrays.")
        return _from_map(values) if isinstance(values, dict) else values

    limits = {"max_array_len": _MOST_VALUES, "max_map_len": _MOST_VALUES, "max_ext_len": 0}
    try:
        return msgpack.unpackb(frame, object_hook=counted, list_hook=counted, raw=False, **limits)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise InputError(f"The message of {len(frame)} bytes is no msgpack ({first_line(error)}).") from None


def pack(value: Any, form: Form = "openpi") -> bytes:
    """A value of mappings, lists, texts, numbers and arrays as a frame. Raises TypeError for anything else."""
    import msgpack

    frame: bytes = msgpack.packb(value, default=_WRITERS[form])
    return frame


# ---- reading ---------------------------------------------------------------------------------------------


def _from_map(found: Mapping[Any, Any]) -> Any:
    """Return what a mapping stands for: an array, a number, an image, or itself."""
    named = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in found.items()}
    if "__ndarray__" in named:
        return array_from(named.get("data"), named.get("dtype"), named.get("shape"))
    if "__npgeneric__" in named:
        return _plain(named.get("data"))
    if "__ndarray_class__" in named:
        return _from_npy(named.get("as_npy"))
    if "nd" in named and "type" in named:
        if named["nd"] is True:
            return array_from(named.get("data"), named["type"], named.get("shape"))
        return array_from(named.get("data"), named["type"], ()).item()
    if "__image__" in named:
        return _from_image(named)
    return found


def array_from(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """An array of its bytes, with the numpy name of its kind of number. Raises InputError where they do not agree."""
    dtype = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise InputError(f"An array's dtype is {dtype!r:.60}; numbers and booleans are taken, such as '<f4' or '|u1'.")
    if not isinstance(shape, list | tuple) or len(shape) > _MOST_DIMENSIONS:
        raise InputError(f"An array's shape is {shape!r:.60}; it should be a list of at most {_MOST_DIMENSIONS} sizes.")
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
        raise InputError(f"An array's shape is {shape!r:.60}; its sizes should be whole numbers from 0 on.")
    kind, count = np.dtype(dtype), math.prod(shape)
    if not isinstance(data, bytes) or len(data) != count * kind.itemsize:
        held = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise InputError(f"An array of {list(shape)} {kind} takes {count * kind.itemsize} bytes, and holds {held}.")
    return np.frombuffer(data, kind).reshape(shape) if count else np.zeros(shape, kind)


def _plain(value: Any) -> Any:
    if not isinstance(value, int | float | str):
        raise InputError(f"A number's data is {value!r:.60}; it should be a number or a text.")
    return value


def _from_npy(data: Any) -> np.ndarray:
    """Read the bytes of a .npy file as `np.save` writes it (numpy.lib.format has its layout). Its header is a text of
    Python, which is matched here and not evaluated."""
    if not isinstance(data, bytes):
        raise InputError(f"as_npy is a {type(data).__name__}; it should be the bytes of a .npy file.")
    start, length = (10, data[8:10]) if data[6:7] == b"\x01" else (12, data[8:12])
    end = start + int.from_bytes(length, "little")
    header = _NPY_HEADER.fullmatch(data[start:end].decode("latin-1")) if data[:6] == b"\x93NUMPY" else None
    if header is None:
        raise InputError("as_npy does not hold a .npy file of numbers, as np.save writes it.")
    dtype, column_major, sizes = header[1], header[2] == "True", [int(size) for size in _NUMBER.findall(header[3])]
    found = array_from(data[end:], dtype, sizes[::-1] if column_major else sizes)
    return found.T if column_major else found


def _from_image(named: Mapping[str, Any]) -> np.ndarray:
    """uint8 [H, W, C] of an image that may be compressed."""
    if named.get("format") == "raw":
        return array_from(named.get("data"), named.get("dtype"), named.get("shape"))
    from PIL import Image, UnidentifiedImageError

    if named.get("format") not in ("png", "jpeg") or not isinstance(named.get("data"), bytes):
        raise InputError(f"An image's format is {named.get('format')!r:.60}; raw, png and jpeg are taken.")
    try:
        with Image.open(io.BytesIO(named["data"]), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise InputError(f"An image has {image.width} x {image.height} pixels; that is too many.")
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"An image cannot be read ({first_line(error)}).") from None


# ---- writing ---------------------------------------------------------------------------------------------


def _openpi(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _check_kind(value)
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise _cannot(value)


def _vla_eval(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _check_kind(value)
        return {
            "__ndarray__": True,
            "data": value.tobytes(),
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
    if isinstance(value, np.generic):
        return value.item()
    raise _cannot(value)


def _groot_npy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        _check_kind(value)
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}
    raise _cannot(value)


def _groot_nd(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _check_kind(value)
        return {
            b"nd": True,
            b"type": value.dtype.str,
            b"kind": b"",
            b"shape": value.shape,
            b"data": value.tobytes(),
        }
    if isinstance(value, np.generic):
        return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}
    raise _cannot(value)


def _check_kind(value: Any) -> None:
    if value.dtype.kind not in "biufU":
        raise TypeError(f"an array of {value.dtype} cannot be sent")


def _cannot(value: Any) -> TypeError:
    return TypeError(f"a {type(value).__name__} cannot be sent")


_WRITERS = {"openpi": _openpi, "vla-eval": _vla_eval, "groot-npy": _groot_npy, "groot-nd": _groot_nd}
