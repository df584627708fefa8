"""Arrays in files of a cache, which may be damaged like any other file."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError

import numpy as np

from atlas.errors import first_line


def map_array(path: Path) -> np.ndarray:
    """A .npy file mapped into memory, to be read. Raises ValueError, whose text says why it cannot be."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    # What is written in the header numpy has Python parse, and believes: of more than there is memory for, too.
    except (
        OSError,
        ValueError,
        TypeError,
        SyntaxError,
        ArithmeticError,
        TokenError,
        RecursionError,
        MemoryError,
    ) as error:
        raise ValueError(first_line(error)) from None
