"""Caches of features that are incomplete, damaged, or made from something other than the training data."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from atlas.system.locks import hold
from tests.bad_input.conftest import BACKBONE
from tests.bad_input.table import Row, cut, each, flip, refused

INDEX, SHARD = "cache.json", "shard_00000.npy"


def index(name: str, change: Callable[[dict[str, Any]], Any], *words: str) -> Row:
    """A change of the values in the index."""

    def spoil(folder: Path) -> None:
        values = json.loads((folder / INDEX).read_text())
        change(values)
        (folder / INDEX).write_text(json.dumps(values))

    return Row(name, spoil, words)


def file(name: str, which: str, change: Callable[[Path], Any], *words: str) -> Row:
    """A change of a file's bytes."""
    return Row(name, lambda folder: change(folder / which), (which, *words))


def shard(name: str, make: Callable[[np.ndarray], Any], *words: str) -> Row:
    """Other values instead of the features."""

    def spoil(folder: Path) -> None:
        np.save(folder / SHARD, make(np.load(folder / SHARD)), allow_pickle=True)

    return Row(name, spoil, (SHARD, *words))


ROWS = [
    file("no index", INDEX, Path.unlink, "holds no"),
    file("an index that is cut off", INDEX, lambda path: cut(path, 0.5), "damaged"),
    file("an index of no bytes", INDEX, lambda path: path.write_text(""), "damaged"),
    file("an index that is a list", INDEX, lambda path: path.write_text("[1, 2]"), "damaged"),
    file("an index that is no text", INDEX, lambda path: path.write_bytes(b"\xff\x00\xfe"), "damaged"),
    index("another format", lambda values: values.update(format=99), INDEX, "format 99"),
    index("no layout", lambda values: values.pop("layout"), INDEX, "'layout'"),
    index("a layout without tokens", lambda values: values["layout"].pop("tokens"), INDEX, "tokens"),
    index("a layout with more", lambda values: values["layout"].update(heads=3), INDEX, "heads"),
    index("no dimensions", lambda values: values["layout"].update(dim=0), INDEX, "dim is 0"),
    index("a negative number of frames", lambda values: values["layout"].update(frames=-5), INDEX, "frames is -5"),
    index("more frames than could be counted", lambda values: values["layout"].update(frames=2**60), "lacks"),
    index("frames in words", lambda values: values["layout"].update(frames="many"), INDEX, "frames is 'many'"),
    index("fewer frames", lambda values: values["layout"].update(frames=51), SHARD, "(52,", "(51,"),
    index("more versions", lambda values: values["layout"].update(versions=2), SHARD, "(52, 2,"),
    index("a source that is a list", lambda values: values.update(source=[1]), INDEX, "damaged"),
    index(
        "another dataset", lambda values: values["source"].update(dataset="0" * 16), "dataset was '0000000000000000'"
    ),
    index("another backbone", lambda values: values["source"].update(backbone="f" * 64), "backbone was 'ffff"),
    index("another image size", lambda values: values["source"].update(image_size=224), "image_size was 224 and is 56"),
    file("no shard", SHARD, Path.unlink),
    file("a shard that is cut off", SHARD, lambda path: cut(path, 0.9), "damaged"),
    file("a shard that is cut off in its header", SHARD, lambda path: cut(path, 0.00005), "damaged"),
    file("a shard of no bytes", SHARD, lambda path: path.write_bytes(b""), "damaged"),
    file("a shard that is text", SHARD, lambda path: path.write_text("features\n" * 100), "damaged"),
    file("a flipped signature", SHARD, lambda path: flip(path, 0), "damaged"),
    file("a flipped version", SHARD, lambda path: flip(path, 6), "damaged"),
    file("a flipped header", SHARD, lambda path: flip(path, 15, 30, 45), "damaged"),
    file("a folder instead of a shard", SHARD, lambda path: (path.unlink(), path.mkdir()), "damaged"),
    shard("features in float32", lambda features: features.astype(np.float32), "float32", "uint16"),
    shard("fewer tokens", lambda features: features[:, :, 1:], "uint16", "(52, 1, 18, 96)"),
    shard("flat features", np.ravel, "uint16", "(52, 1, 18, 96)"),
    shard("another order in memory", np.asfortranarray, "uint16"),
    shard("pickled objects", lambda features: np.array([{"features": 1}], object), "damaged"),
]


@each(ROWS)
def test_a_spoilt_cache_is_refused(
    bad: Row, place: Path, good_data: Path, good_cache: Path, copied: Callable[[Path], Path]
) -> None:
    cache = copied(good_cache)
    bad.spoil(cache)
    named = [word for word in bad.words if word != SHARD or (cache / SHARD).exists()]

    refused(
        place,
        ["train", "--cpu", *BACKBONE, f"data.path={good_data}", f"data.feature_cache={cache}"],
        str(cache),
        *named,
    )


def test_a_cache_that_is_not_there_or_no_folder_is_refused(place: Path, good_data: Path) -> None:
    (place / "note.txt").write_text("no cache\n")
    for name in ("nowhere", "note.txt"):
        arguments = ["train", "--cpu", *BACKBONE, f"data.path={good_data}", f"data.feature_cache={place / name}"]
        refused(place, arguments, "data.feature_cache", str(place / name), INDEX, "atlas data cache-features")


def test_a_cache_is_not_gone_on_with_where_its_index_is_damaged(
    place: Path, good_data: Path, good_cache: Path, copied: Callable[[Path], Path]
) -> None:
    cache = copied(good_cache)
    (cache / INDEX).write_text("{")

    arguments = ["data", "cache-features", "--cpu", *BACKBONE, f"data.path={good_data}", "--out", str(cache)]
    refused(place, arguments, str(cache / INDEX), "damaged")


def test_a_cache_that_another_process_fills_is_left_alone(
    copied: Callable[[Path], Path], good_cache: Path, good_data: Path, place: Path
) -> None:
    cache = copied(good_cache)
    with hold(cache, "the cache"):
        refused(
            place,
            ["data", "cache-features", "--cpu", "--out", str(cache), f"data.path={good_data}", *BACKBONE],
            f"Process {os.getpid()} on {socket.gethostname()} is working on this feature cache",
        )
