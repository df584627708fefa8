"""The manifest of a checkpoint: the size and the SHA-256 of each of its files, by which damage is found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from atlas.errors import InputError
from atlas.files import sync_tree, write_json
from atlas.registry.local import POLICY_FILES
from atlas.training.state import STATE, load_state

MANIFEST = "trainer/manifest.json"
_OLDER = "trainer/optimizer.pt"  # only versions of Atlas that wrote no manifest wrote this
_NEEDED = (STATE, *(f"policy/{name}" for name in POLICY_FILES))
_CHUNK = 1 << 20


def seal(folder: Path) -> None:
    """Write the manifest of a checkpoint that is complete but for it, and wait until the disk has all of it.

    Raises OSError.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    digests = {}
    for file in files:
        digests[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    write_json(folder / MANIFEST, {"files": digests, "sha256": _digest(digests)})
    sync_tree(folder)


def verify(checkpoint: Path) -> None:
    """Compare every file of a checkpoint with its manifest. Raises InputError that names the file that is damaged.

    Files that the manifest does not name are no damage. A checkpoint from before there were manifests has none: of it
    only the names of its files are looked at.
    """
    path = checkpoint / MANIFEST
    if not path.exists() and (checkpoint / _OLDER).exists():
        for name in (*_NEEDED, "trainer/random.pt"):
            _require(checkpoint / name)
        load_state(checkpoint)
        return
    _require(path)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        listed: dict[str, dict[str, Any]] = manifest["files"]
        whole = manifest["sha256"] == _digest(listed) and all(name in listed for name in _NEEDED)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged.")
    for name, was in listed.items():
        file = checkpoint / name
        _require(file)
        found = file.stat().st_size
        if found != was["size"]:
            raise InputError(f"{file} is damaged: it has {found} bytes, and was written with {was['size']}.")
        if _sha256(file) != was["sha256"]:
            raise InputError(f"{file} is damaged: its bytes are not those that were written (SHA-256 differs).")


def _digest(files: dict[str, dict[str, Any]]) -> str:
    """Of the manifest's own contents: damage to it is not to be taken for damage to others."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _require(file: Path) -> None:
    if not file.is_file():
        raise InputError(f"{file} is missing; the checkpoint is damaged.")


def _sha256(file: Path) -> str:
    """Reads in pieces into memory that stays: other threads run on meanwhile."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()
