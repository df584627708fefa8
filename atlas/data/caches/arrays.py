"""Array files in a cache, which may be damaged like any other file."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError

import numpy as np

from atlas.errors import first_line


def map_array(path: Path) -> np.ndarray:
    """A .npy file mapped into memory, read-only. Raises ValueError whose text says why it cannot be mapped."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    # numpy lets Python parse the header and believes it, even if it claims more than fits into memory.
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
