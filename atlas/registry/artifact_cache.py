"""Downloaded models kept on this machine: complete and unchanged, or not at all.

A model's folder is filled under another name and renamed when it is complete, with a receipt that holds the SHA-256 of
every file. Each use checks the files against it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from atlas.errors import InputError
from atlas.registry.references import ArtifactReference
from atlas.system.documents import read_json
from atlas.system.files import partial_folder, sha256_of, write_json
from atlas.system.paths import cache_root, inside

logger = logging.getLogger(__name__)

_FILES, _RECEIPT = "files", "receipt.json"
_CHUNK = 1 << 20
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Receipt:
    """A note of a download. digest: the whole artifact's, from its server; sha256: {name in it: hex digest}."""

    reference: str
    digest: str
    sha256: Mapping[str, str]
    metadata: Mapping[str, Any]
    description: str | None


@dataclass(frozen=True)
class Cached:
    """A model on this machine. path: the folder with its files, which belong to the cache: never change them."""

    path: Path
    receipt: Receipt


class ArtifactCache:
    """The models of one wandb server."""

    def __init__(self, server: str) -> None:
        self._root = cache_root() / "wandb" / quote(urlsplit(server).netloc, safe="")

    def find(self, reference: ArtifactReference) -> Cached | None:
        """The model of a version, if it is here and unchanged; a damaged one is removed."""
        folder = self._folder(reference)
        try:
            receipt = Receipt(**read_json(folder / _RECEIPT))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            receipt = None
        if receipt is not None and _intact(folder / _FILES, receipt):
            return Cached(folder / _FILES, receipt)
        logger.warning("%s in the cache is damaged and has been removed from it (%s).", reference, folder)
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def versions(self, reference: ArtifactReference) -> list[str]:
        """The versions of a model that are here, oldest first."""
        found = [path.parent.name for path in self._folder(reference).parent.glob(f"v*/{_RECEIPT}")]
        return sorted(found, key=lambda version: int(version[1:]))

    def add(self, reference: ArtifactReference, fill: Callable[[Path], Receipt]) -> Cached:
        """Let `fill` put a model's files into a folder, which is kept only if that succeeds."""
        folder = self._folder(reference)
        _remove_old_partials(folder)
        with partial_folder(folder) as partial:
            (partial / _FILES).mkdir()
            receipt = fill(partial / _FILES)
            write_json(partial / _RECEIPT, asdict(receipt))
            try:
                partial.rename(folder)
            except OSError:  # one is there: another process was faster, or it is a version that was replaced
                found = self.find(reference)
                if found is not None and found.receipt.digest == receipt.digest:
                    return found
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        return Cached(folder / _FILES, receipt)

    def _folder(self, reference: ArtifactReference) -> Path:
        parts = (reference.entity or "", reference.project, reference.name, reference.alias or "")
        return inside(self._root, "/".join(quote(part, safe="") or "_" for part in parts), follow_links=True)


def _remove_old_partials(folder: Path) -> None:
    """Remove what killed downloads left behind, except those of the last day: they may still go on, on any machine."""
    for partial in folder.parent.glob(f".{folder.name}.*.partial"):
        if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


def _intact(folder: Path, receipt: Receipt) -> bool:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return set(found) == set(receipt.sha256) and all(
        sha256_of(path) == receipt.sha256[name] for name, path in found.items()
    )


def place(source: Path, target: Path) -> Path:
    """Copy a folder to `target`, complete or not at all; an empty folder there is filled. Raises InputError."""
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} already exists and is not empty; choose another folder, or remove it.")
    with partial_folder(target) as partial:
        shutil.copytree(source, partial, copy_function=shutil.copyfile, dirs_exist_ok=True)
        os.replace(partial, target)
    return target
