"""A model ready to be sent: its files beside what will be said of them, so that nothing is lost when sending fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from atlas.files import write_json
from atlas.registry.client import MODEL
from atlas.registry.files import artifact_files, link_or_copy, sendable

logger = logging.getLogger(__name__)

_FILES, _RECORD = "files", "artifact.json"


@dataclass(frozen=True)
class Package:
    """folder: `artifact.json` and `files/`; the rest is what the artifact will be called and have."""

    folder: Path
    name: str
    aliases: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    description: str | None = None

    @property
    def files(self) -> Path:
        return self.folder / _FILES


def stage(
    source: Path,
    staging: Path,
    name: str,
    aliases: Sequence[str],
    metadata: Mapping[str, Any],
    description: str | None,
) -> Package:
    """Link a model's files (see `artifact_files`) into a new folder of `staging`; the source may be deleted then.

    name and aliases: such as wandb takes. Raises InputError where there is no model at `source`, OSError.
    """
    files = artifact_files(source)
    package = Package(_new_folder(staging), name, tuple(aliases), sendable(metadata), description)
    for inside, file in files.items():
        link_or_copy(file, package.files / inside)
    record = {"name": name, "aliases": list(aliases), "metadata": package.metadata, "description": description}
    write_json(package.folder / _RECORD, record)  # last: with it the package is complete
    return package


def read_package(folder: Path) -> Package | None:
    """The package in a folder; None where it is none."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return Package(folder, record["name"], record["aliases"], record["metadata"], record["description"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def log_package(wandb: ModuleType, run: Any, package: Package) -> Any:
    """Hand a package to a wandb run; returns the Artifact, whose `wait` says whether it arrives.

    The files are read in place, and later: they must stay. Raises what wandb raises.
    """
    artifact = wandb.Artifact(
        package.name, type=MODEL, metadata=dict(package.metadata), description=package.description
    )
    for inside, file in artifact_files(package.files).items():  # wandb's own `add_dir` prints
        # Staged already: without these two, wandb makes copies of its own.
        artifact.add_file(str(file), name=inside, policy="immutable", skip_cache=True)
    return run.log_artifact(artifact, aliases=list(package.aliases))


def _new_folder(staging: Path) -> Path:
    """The first free number: other packages may wait there, of an earlier process too."""
    staging.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = staging / f"{number:04d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("numbers do not end")
