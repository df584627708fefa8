"""Columns of Parquet files and of JSON lines, whatever library wrote them.

pandas 3, polars and pyarrow have several types for the same data: text as string, large_string, string_view or a
dictionary of them, integers as floats if one may be missing, lists with long or short offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atlas.data.origin import mend
from atlas.errors import InputError, first_line
from atlas.system.documents import parse_json

_ROWS_A_BYTE = 4  # of a file, at most: its frames have distinct numbers, which take space
_FEW_ROWS = 100_000  # are never too many


@contextmanager
def readable_parquet(path: Path) -> Iterator[None]:
    """Turn the errors that pyarrow raises for a missing or damaged file into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {mend(path)}") from None
    # ArrowException does not cover all: names that are not text, and impossible list sizes, raise Python's errors.
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path} cannot be read as Parquet ({first_line(error)}). {mend(path)}") from None


def open_parquet(path: Path, **options: Any) -> pq.ParquetFile:
    """The file, after checking that it does not claim more rows than it can hold. Use it within `readable_parquet`."""
    file = pq.ParquetFile(path, **options)
    rows = file.metadata.num_rows
    if not 0 <= rows <= most_rows(path):
        raise InputError(f"{path} has {path.stat().st_size} bytes, but claims to hold {rows} rows. {mend(path)}")
    return file


def most_rows(path: Path) -> int:
    """The number of rows that a file may hold at most. Raises OSError."""
    return max(_FEW_ROWS, _ROWS_A_BYTE * path.stat().st_size)


def parquet_table(path: Path, columns: Sequence[str], texts: bool = False) -> pa.Table:
    """Columns of a metadata file; texts: also all columns that hold text. Raises InputError."""
    with readable_parquet(path):
        # LeRobot's recorder leaves thousands of row groups per file, which take a third longer to read ahead.
        file = open_parquet(path, pre_buffer=False)
        schema = file.schema_arrow
        more = [field.name for field in schema if texts and is_text(field.type)]
        there = [name for name in dict.fromkeys((*columns, *more)) if name in schema.names]
        table = file.read(columns=there)
    lacking = [name for name in columns if name not in table.column_names]
    if lacking:
        raise InputError(f"{path} lacks the column '{lacking[0]}'.")
    return table


def json_lines(path: Path, columns: Sequence[str], texts: bool = False) -> pa.Table:
    """The same for a file with one JSON object per line. Raises InputError."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [parse_json(line) for line in file if line.strip()]
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {mend(path)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as lines of JSON ({first_line(error)}). {mend(path)}") from None
    if any(not isinstance(row, dict) for row in rows):
        raise InputError(f"{path} has lines that are not JSON objects.")
    names = list(columns)
    if texts and rows:
        names += [name for name, value in rows[0].items() if isinstance(value, str) and name not in names]
    lacking = [name for name in columns if rows and not any(name in row for row in rows)]
    if lacking or not rows:
        raise InputError(f"{path} lacks the column '{lacking[0]}'." if lacking else f"{path} is empty. {mend(path)}")
    try:
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:  # a column holds several kinds of values
        raise InputError(f"{path} cannot be read as lines of JSON ({first_line(error)}). {mend(path)}") from None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, in any of the types for it."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def texts_of(table: pa.Table, key: str, path: Path) -> list[str | None]:
    """A column of text. Raises InputError."""
    column = table.column(key)
    if not is_text(column.type):
        raise InputError(f"{path}: '{key}' is of type {column.type}, expected text.")
    with readable_parquet(path):
        return list(column.to_pylist())


def lists_of_texts(table: pa.Table, key: str, path: Path) -> list[list[str]]:
    """A column of lists of text; a null is an empty list. Raises InputError."""
    column = table.column(key)
    kind = column.type
    empty = pa.types.is_null(kind) or (is_list(kind) and pa.types.is_null(kind.value_type))
    if not empty and not (is_list(kind) and is_text(kind.value_type)):
        raise InputError(f"{path}: '{key}' is of type {kind}, expected lists of text.")
    with readable_parquet(path):
        return [[text for text in row or [] if text is not None] for row in column.to_pylist()]


def numbers_of(table: pa.Table, key: str, dtype: Any, path: Path, nulls: float | None = None) -> np.ndarray:
    """A column of numbers [rows]: np.int64 for integers of whatever type, or np.float64.

    nulls: what replaces missing values; None if none may be missing. Raises InputError.
    """
    column = table.column(key)
    with readable_parquet(path):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if pa.types.is_null(kind) and nulls is not None:
            return np.full(len(column), nulls, dtype)
        missing = column.null_count
        if number:
            values: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
            missing = int(np.isnan(values).sum())  # nulls become NaN too
        if not number or (missing and nulls is None):
            raise InputError(f"{path}: '{key}' is of type {kind} with {missing} nulls, expected numbers.")
        if missing:
            values[np.isnan(values)] = nulls
        if dtype is np.float64:
            return values
        if not np.isfinite(values).all() or (np.abs(values) >= 2**53).any() or (values != np.round(values)).any():
            raise InputError(f"{path}: '{key}' holds numbers that are not integers, or too large; expected integers.")
        return values.astype(np.int64)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists, of one length or of several."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
