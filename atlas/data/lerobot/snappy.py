"""Parts of a Snappy stream, without decompressing what comes before them.

The compressor works on 64 KiB at a time and refers to nothing further back, so a run of these blocks is a stream of its
own once its length is put in front (https://github.com/google/snappy/blob/main/format_description.txt).
"""

from __future__ import annotations

import numpy as np

BLOCK = 1 << 16
_MOST_ELEMENTS = 1 << 18  # more are of data that is small when it is compressed: then all of it is soon decompressed


def block_starts(stream: memoryview) -> np.ndarray | None:
    """Where each block begins in the stream, and where the last one ends: int64 [blocks + 1].

    None where blocks do not begin with an element of their own, or there are too many elements to look at.
    """
    length, at = _length(stream)
    starts: list[int] = []
    produced = 0
    for _ in range(_MOST_ELEMENTS):
        if at >= len(stream):
            break
        if produced == len(starts) * BLOCK:
            starts.append(at)
        tag = stream[at]
        kind, size = tag & 3, (tag >> 2) + 1
        if kind == 0:  # bytes as they are
            more = max(0, size - 60)  # bytes that the size has of its own
            if more:
                size = int.from_bytes(stream[at + 1 : at + 1 + more], "little") + 1
            at += 1 + more + size
        elif kind == 1:  # a copy of earlier ones, as the next two are
            size = ((tag >> 2) & 7) + 4
            at += 2
        else:
            at += 3 if kind == 2 else 5
        produced += size
        if produced > len(starts) * BLOCK:
            return None
    return np.array([*starts, at], np.int64) if produced == length and at == len(stream) else None


def stream_of(blocks: bytes, length: int) -> bytes:
    """A stream of its own made of some blocks, which hold `length` bytes."""
    head = bytearray()
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + blocks


def _length(stream: memoryview) -> tuple[int, int]:
    """How many bytes the stream holds, and where its elements begin."""
    value = at = 0
    while at < len(stream):
        byte = stream[at]
        value |= (byte & 0x7F) << (7 * at)
        at += 1
        if not byte & 0x80:
            break
    return value, at
