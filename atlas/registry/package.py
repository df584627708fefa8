"""A model ready to be sent: its files beside their description, so that nothing is lost if sending fails."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from atlas.registry.client import MODEL
from atlas.registry.references import SOMEBODY, WANDB
from atlas.system.documents import read_json
from atlas.system.file_store import artifact_files, link_or_copy
from atlas.system.files import finite, write_json

logger = logging.getLogger(__name__)

STAGED_FILES, _RECORD = "files", "artifact.json"

Waiting = TypeVar("Waiting")


@dataclass(frozen=True)
class Package:
    """files: {name in the artifact: file}; folder: where they are staged, or the model itself."""

    name: str
    aliases: Sequence[str]
    metadata: Mapping[str, Any]
    description: str | None
    files: Mapping[str, Path]
    folder: Path


def stage(
    source: Path,
    staging: Path,
    name: str,
    aliases: Sequence[str],
    metadata: Mapping[str, Any],
    description: str | None,
    copy: bool = False,
) -> Package:
    """Link a model's files (see `artifact_files`) into `files/` in a new folder of `staging`.

    The source may then be deleted, and with `copy`, which takes time and space, also changed. name and aliases: in a
    form that wandb accepts. Raises InputError if there is no model at `source`, OSError.
    """
    found = artifact_files(source)
    folder = _new_folder(staging)
    for inside, file in found.items():
        target = folder / STAGED_FILES / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copy2(file, target)
        else:
            link_or_copy(file, target)
    record = {"name": name, "aliases": list(aliases), "metadata": finite(metadata), "description": description}
    write_json(folder / _RECORD, record)  # last: it marks the package as complete
    package = read_package(folder)
    assert package is not None
    return package


def read_package(folder: Path) -> Package | None:
    """The package staged in a folder; None if there is none, or it is incomplete."""
    try:
        record = read_json(folder / _RECORD)
        known = (record["name"], record["aliases"], record["metadata"], record["description"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Package(*known, artifact_files(folder / STAGED_FILES), folder)


def waiting_in(staging: Path) -> list[Package]:
    """The packages in a folder of `stage`, oldest first: those that have not been sent successfully."""
    folders = sorted(staging.iterdir()) if staging.is_dir() else []
    return [package for folder in folders if (package := read_package(folder)) is not None]


def send(wandb: ModuleType, run: Any, package: Package, timeout_seconds: float) -> Any:
    """Hand a package to a wandb run; returns the Artifact once wandb has confirmed it, or at once in an offline run.

    Offline, the files are read later and in place, so they must stay. Raises what wandb raises.
    """
    description = package.description
    if description is not None and not run.offline:  # if nothing is configured, only the server says whose run it is
        description = description.replace(f"{WANDB}{SOMEBODY}/", f"{WANDB}{run.entity}/")
    artifact = wandb.Artifact(package.name, type=MODEL, metadata=dict(package.metadata), description=description)
    for inside, file in package.files.items():  # wandb's own `add_dir` prints
        # Without these two, wandb makes copies of its own.
        artifact.add_file(str(file), name=inside, policy="immutable", skip_cache=True)
    logged = run.log_artifact(artifact, aliases=list(package.aliases))
    if not run.offline:
        logged.wait(timeout=timeout_seconds)  # only once: a wait that has timed out cannot be resumed
    return logged


def send_in_order(
    waiting: Iterable[Waiting], deliver: Callable[[Waiting], None], failed: Callable[[Waiting, Exception], None]
) -> None:
    """Try to deliver everything in `waiting`, in its order, which is oldest first.

    An upload that the server refuses (wandb raises ValueError) does not hold up the others. After one that gets no
    answer, the rest wait for the next attempt, as they would get none either. `failed` is called for each error.
    """
    for each in waiting:
        try:
            deliver(each)
        except Exception as error:
            failed(each, error)
            if not isinstance(error, ValueError):
                return


def _new_folder(staging: Path) -> Path:
    """The first free number: other packages may be waiting there, also from an earlier process."""
    staging.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = staging / f"{number:04d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("there is always a free number")
