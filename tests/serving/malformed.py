"""Messages that are not what they should be, made of one that is."""

from __future__ import annotations

import random

import msgpack

_BEGINNINGS = [bytes([kind]) for kind in (0xC1, 0xC7, 0xC9, 0xDB, 0xDD, 0xDF, 0xD8, 0xCA, 0x8F, 0x9F)]


def malformed(whole: bytes, rng: random.Random) -> bytes | str:
    """A frame: damaged, cut, longer, of other values, random, deep, or a text."""
    way = rng.randrange(7)
    if way == 0:
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 20)):
            place = rng.randrange(min(len(data), 400) if rng.random() < 0.7 else len(data))
            data[place] = rng.randrange(256)
        return bytes(data)
    if way == 1:
        return whole[: rng.randrange(len(whole))]
    if way == 2:
        return whole + rng.randbytes(rng.randrange(1, 50))
    if way == 3:
        value = _value(rng, 4)
        return bytes(msgpack.packb(value if rng.random() < 0.5 else {"observation/image": value, "prompt": value}))
    if way == 4:
        return rng.choice(_BEGINNINGS) + rng.randbytes(rng.randrange(200))
    if way == 5:
        return b"\x91" * rng.randrange(1, 5000)
    return "".join(chr(rng.randrange(32, 0x300)) for _ in range(rng.randrange(100)))


def _value(rng: random.Random, deep: int) -> object:
    """A value of any kind, with things in it that are nearly arrays."""
    kinds = 8 if deep else 5
    kind = rng.randrange(kinds)
    if kind < 5:
        return [None, rng.randrange(-(2**40), 2**40), rng.random() * 10**300, rng.randbytes(9), "text" * 3][kind]
    if kind == 5:
        return [_value(rng, deep - 1) for _ in range(rng.randrange(5))]
    if kind == 6:
        return {f"key {i}": _value(rng, deep - 1) for i in range(rng.randrange(5))}
    marks = ["__ndarray__", "__npgeneric__", "__ndarray_class__", "nd", "__image__"]
    keys = ["data", "dtype", "shape", "as_npy", "type", "kind", "format"]
    dtypes = ["<f4", "O", "|u1", "<U9999999", "V8", "c16", 7]
    near = {rng.choice(marks): True} | {key: _value(rng, 0) for key in keys if rng.random() < 0.6}
    near["dtype"] = near["type"] = rng.choice(dtypes)
    near["shape"] = [rng.choice([0, 1, 3, -1, 2**62]) for _ in range(rng.randrange(4))]
    return {key.encode(): value for key, value in near.items()} if rng.random() < 0.5 else near
