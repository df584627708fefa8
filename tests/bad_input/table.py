"""A row of the table, and what is checked for each: exit 2, the offending name, no traceback, nothing touched."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

import atlas.cli

# A training that would be over in a moment, in case something wrong is let through.
SMALL = (
    "model.vision={name: keypoints, width: 8, keypoints: 8}",
    "model.fusion.dim=32",
    "model.fusion.layers=1",
    "model.language.dim=16",
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=0",
    "training.max_steps=2",
    "evaluation.env=none",
    *(f"logging.media.{kind}.interval=0" for kind in ("gradient_logger", "plot_logger", "action_logger")),
    "logging.media.vis_dataset.interval=0",
)


@dataclass(frozen=True)
class Row:
    """One bad input: `spoil` makes it from a good one, `words` must occur in the message."""

    name: str
    spoil: Callable[[Path], object]
    words: tuple[str, ...]


def row(name: str, *words: str) -> Callable[[Callable[[Path], object]], Row]:
    """Makes a row from the function below, which spoils the good input at the path it is given."""
    return lambda spoil: Row(name, spoil, words)


def each(rows: Sequence[Row]) -> pytest.MarkDecorator:
    """Runs a test once for each row."""
    assert len({r.name for r in rows}) == len(rows), "two rows have the same name"
    return pytest.mark.parametrize("bad", rows, ids=lambda r: r.name.replace(" ", "-"))


def refused(place: Path, arguments: Sequence[str], *words: str) -> None:
    """Run the command in this process, in the folder `place`, and check that it is refused properly."""
    before = contents(place)

    # Whatever is let through must not begin to train, or to start simulators: it is too late to refuse it then.
    begun = AssertionError("let through")
    with (
        mock.patch("atlas.train.run", side_effect=begun),
        mock.patch("atlas.rollout.evaluation.Evaluator", side_effect=begun),
    ):
        code, said = run_here(place, arguments)

    assert code == 2, f"exit {code}: {said}"
    assert_is_a_message(said, words)
    assert contents(place) == before


def assert_is_a_message(said: str, words: Sequence[str]) -> None:
    assert "Traceback" not in said, said
    flat = " ".join(said.split())
    for word in words:
        assert word in flat, f"no '{word}' in: {said}"


def run_here(place: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of `atlas ARGUMENTS`, and what it has written on stderr."""
    stderr, home = io.StringIO(), Path.cwd()
    with (
        # Facts about data may be cached there, beside what must not be touched.
        mock.patch.dict(os.environ, {"ATLAS_CACHE_DIR": str(place.with_name(place.name + "-cache"))}),
        mock.patch.object(sys, "argv", ["atlas", *arguments]),
        redirect_stdout(io.StringIO()),
        redirect_stderr(stderr),
        pytest.raises(SystemExit) as stop,
    ):
        os.chdir(place)  # contextlib.chdir is newer than Python 3.10
        try:
            atlas.cli.main()
        finally:
            os.chdir(home)
    assert isinstance(stop.value.code, int)
    return stop.value.code, stderr.getvalue()


def contents(place: Path) -> dict[str, str]:
    """Everything below a folder: files by their hash, links by their target."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {os.readlink(path)}"
        else:
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def flip(path: Path, *places: int) -> None:
    """Flip all bits of the bytes at these places; negative ones count from the end."""
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path, share: float) -> None:
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
