"""Packages of others, as far as entry points go: folders on Python's path, for this process and those it starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, group: str, line: str) -> None:
    """Make a package with one entry point known until the test is over."""
    site = folder / f"site-{package}"
    info = site / f"{package}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
    monkeypatch.syspath_prepend(str(site))
    there = [str(site), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, there)))
