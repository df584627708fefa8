"""The manifest of a checkpoint: the size and SHA-256 of each of its files, by which damage is found."""

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
    """Write the manifest of an otherwise complete checkpoint, and wait until all of it is on the disk.

    Raises OSError.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    digests = {}
    for file in files:
        digests[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    write_json(folder / MANIFEST, {"files": digests, "sha256": _digest(digests)})
    sync_tree(folder)


def read_manifest(checkpoint: Path, needed: Iterable[str]) -> Listed:
    """Read what the manifest says of each file. Raises InputError if it is damaged or lacks a needed file."""
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
    """Compare files with what the manifest says of them. Raises InputError that names the damaged file, or a name that
    is not that of a file in the checkpoint."""
    for name, was in listed.items():
        file = inside(checkpoint, name, where=str(checkpoint / MANIFEST), follow_links=True)
        require(file)
        found = file.stat().st_size
        if found != was["size"]:
            raise InputError(f"{file} is damaged: it has {found} bytes, but was written with {was['size']}.")
        if sha256_of(file) != was["sha256"]:
            raise InputError(f"{file} is damaged: its bytes are not those that were written (SHA-256 differs).")


def verify_policy(folder: Path, needed: Iterable[str]) -> None:
    """Compare the files of a policy in a checkpoint, except its README, with the checkpoint's manifest.

    A policy elsewhere, or in a checkpoint from before there were manifests, has nothing to be compared with. Raises
    InputError that names the damaged file.
    """
    checkpoint = folder.parent
    if not (checkpoint / MANIFEST).exists():
        return
    listed = read_manifest(checkpoint, [f"{folder.name}/{name}" for name in needed])
    own = {k: v for k, v in listed.items() if k.startswith(f"{folder.name}/") and not k.endswith("/README.md")}
    compare_files(checkpoint, own)


def require(file: Path) -> None:
    """Raises InputError if a checkpoint lacks this file."""
    if not file.is_file():
        raise InputError(f"{file} is missing; the checkpoint is damaged.")


def _digest(files: Listed) -> str:
    """The hash of the manifest's own contents: damage to it must not be taken for damage to the files."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
