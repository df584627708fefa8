"""Changes to the bytes of a file, as damage and malice make them: each is a pure function of a random generator."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Sequence

# Replacements for a number or a word of a text.
_NUMBERS = (
    "0 -1 1 255 65536 2147483648 -9223372036854775808 9223372036854775807 18446744073709551616 1e308 1e999 NaN -0.0"
)
_VALUES = ("1" + "0" * 40, "-1e999", "Infinity", "0.1", "null", "true", '""', "[]", "{}", "[[]]", '"a"')
_WORDS = (
    '"../../../etc/passwd"',
    '"/etc/passwd"',
    '"\\u0000"',
    '"\\ud800"',
    '"{chunk_index!s:.>2.0}"',
    '"{:>999999999}"',
)
_NESTED = ("[" * 2000, "{" * 50, "&a [*a]", "*a", "!!python/object:os.system {}", "<<: *a")
_EXTREMES = (*_NUMBERS.split(), *_VALUES, *_WORDS, *_NESTED)
_TOKEN = re.compile(rb"-?\d[\d.eE+-]*|\"[^\"\n]{0,80}\"|\b[A-Za-z_][\w.]*\b")
_INTEGERS = (0, 1, *(2**power + step for power in (7, 8, 15, 16, 31, 32, 42, 60, 63, 64) for step in (-1, 0)))


def mutate(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A changed copy. others: files of the same dataset, of which parts may be spliced in."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(_kinds(content))(content, others, rng)
    return content


def _kinds(content: bytes):  # type: ignore[no-untyped-def]
    general = [_flip, _truncate, _insert, _delete, _splice, _integer, _integer]
    if _is_text(content):
        return [*general, _token, _token, _token, _token, _repeat_line]
    return [*general, _header, _header, _header] if _header_length(content) else general


def _is_text(content: bytes) -> bool:
    return b"\0" not in content[:1000] and content[:4] != b"PAR1"


def _place(content: bytes, rng: random.Random) -> int:
    """Anywhere; in a long file often near its ends, where most formats describe their contents."""
    size = len(content)
    if size > 2000 and rng.random() < 0.6:
        return rng.choice((rng.randrange(1000), size - 1 - rng.randrange(1000)))
    return rng.randrange(max(1, size))


def _flip(content: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        changed[_place(changed, rng) % len(changed)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    return content[: rng.choice((0, 1, 7, 8, _place(content, rng), len(content) - 1))]


def _insert(content: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    place = _place(content, rng)
    return content[:place] + rng.randbytes(rng.choice((1, 4, 64))) + content[place:]


def _delete(content: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    place = _place(content, rng)
    return content[:place] + content[place + rng.choice((1, 2, 8, 100, 1000)) :]


def _splice(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    source = rng.choice((content, *others)) or b"\0"
    start, length = _place(source, rng), rng.choice((4, 16, 200, 4000))
    place = _place(content, rng)
    return content[:place] + source[start : start + length] + content[place + length * rng.randrange(2) :]


def _integer(content: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    width, place = rng.choice((1, 2, 4, 8)), _place(content, rng)
    number = rng.choice(_INTEGERS) % 256**width
    return content[:place] + number.to_bytes(width, rng.choice(("little", "big"))) + content[place + width :]


def _token(content: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    """Replace a number or a word of a text with another, extreme or from elsewhere in the text."""
    tokens = list(_TOKEN.finditer(content))
    if not tokens:
        return content
    old = rng.choice(tokens)
    new = rng.choice(tokens)[0] if rng.random() < 0.3 else rng.choice(_EXTREMES).encode()
    return content[: old.start()] + new + content[old.end() :]


def _repeat_line(content: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    if lines:
        number = rng.randrange(len(lines))
        lines[number:number] = [lines[rng.randrange(len(lines))]] * rng.choice((1, 1, 100))
    return b"".join(lines)


# ---- safetensors: a length of 8 bytes, a header of JSON, the tensors --------------------------------------


def _header_length(content: bytes) -> int:
    """0 for files of other kinds."""
    if len(content) < 16 or content[8:9] != b"{":
        return 0
    (length,) = struct.unpack("<Q", content[:8])
    return int(length) if length <= len(content) - 8 else 0


def _header(content: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    """Another header, of the length that the file then states."""
    end = 8 + _header_length(content)
    header = _token(content[8:end], (), rng)
    return struct.pack("<Q", len(header)) + header + content[end:]
