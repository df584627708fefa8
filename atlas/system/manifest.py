"""The manifest of a checkpoint: the size and the SHA-256 of each of its files, by which damage is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atlas.errors import InputError
from atlas.system.documents import read_json
from atlas.system.files import sha256_of, sync_tree, write_json
from atlas.system.paths import inside

MANIFEST = "trainer/manifest.json"

Listed = dict[str, dict[str, Any]]  # {name: {"size", "sha256"}}


def seal(folder: Path) -> None:
    """Write the manifest of a checkpoint that is complete but for it, and wait until the disk has all of it.

    Raises OSError.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    digests = {}
    for file in files:
        digests[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    write_json(folder / MANIFEST, {"files": digests, "sha256": _digest(digests)})
    sync_tree(folder)


def read_manifest(checkpoint: Path, needed: Iterable[str]) -> Listed:
    """What the manifest says of each file. Raises InputError where it is damaged or lacks one that is needed."""
    path = checkpoint / MANIFEST
    require(path)
    try:
        manifest = read_json(path)
        listed: Listed = manifest["files"]
        whole = manifest["sha256"] == _digest(listed) and all(name in listed for name in needed)
        whole = whole and all(
            isinstance(was["size"], int) and isinstance(was["sha256"], str) for was in listed.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged.")
    return listed


def compare_files(checkpoint: Path, listed: Listed) -> None:
    """Compare files with what the manifest says of them. Raises InputError that names the file that is damaged, or
    a name that is not one of a file of the checkpoint."""
    for name, was in listed.items():
        file = inside(checkpoint, name, where=str(checkpoint / MANIFEST), follow_links=True)
        require(file)
        found = file.stat().st_size
        if found != was["size"]:
            raise InputError(f"{file} is damaged: it has {found} bytes, and was written with {was['size']}.")
        if sha256_of(file) != was["sha256"]:
            raise InputError(f"{file} is damaged: its bytes are not those that were written (SHA-256 differs).")


def verify_policy(folder: Path, needed: Iterable[str]) -> None:
    """Compare the files of a policy that lies in a checkpoint with the checkpoint's manifest, but for its README.

    A policy elsewhere, and one of a checkpoint from before there were manifests, has nothing to be compared with.
    Raises InputError that names the file that is damaged.
    """
    checkpoint = folder.parent
    if not (checkpoint / MANIFEST).exists():
        return
    listed = read_manifest(checkpoint, [f"{folder.name}/{name}" for name in needed])
    own = {k: v for k, v in listed.items() if k.startswith(f"{folder.name}/") and not k.endswith("/README.md")}
    compare_files(checkpoint, own)


def require(file: Path) -> None:
    """Raises InputError where a checkpoint lacks a file."""
    if not file.is_file():
        raise InputError(f"{file} is missing; the checkpoint is damaged.")


def _digest(files: Listed) -> str:
    """Of the manifest's own contents: damage to it is not to be taken for damage to others."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
