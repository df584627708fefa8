"""Pretrained weights, from the disk or the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from atlas.errors import InputError, first_line

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHTS = "model.safetensors"


def find_weights(reference: str | Path, key: str) -> Path:
    """The safetensors file that `reference` means: a file, a folder with a model.safetensors, or a hub id.

    A hub id is downloaded once into the hub's own cache and found there afterwards, also offline. `key` is the setting
    that `reference` comes from, for messages. Raises InputError if there is no such file.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise InputError(f"{key}: the folder {path} holds no {WEIGHTS}.")
        return path / WEIGHTS
    name = str(reference)
    if not _HUB_ID.fullmatch(name) or name.endswith(".safetensors"):
        raise InputError(
            f"{key}: there is no file or folder {path}; give a .safetensors file, a folder with a {WEIGHTS}, "
            "or the name of a model on the Hugging Face hub, such as facebook/VGGT-1B."
        )
    lacking = f"it has no {WEIGHTS}"
    folder = fetch_folder(name, key, [Alternative((WEIGHTS,), lambda there: (there / WEIGHTS).is_file())], lacking)
    return folder / WEIGHTS


class Alternative(NamedTuple):
    """One form in which a model may be stored on the hub."""

    files: Sequence[str]  # patterns of what to fetch
    complete: Callable[[Path], bool]  # whether the folder then holds everything needed
    subfolders: bool = False  # whether the patterns reach into subfolders: the hub's `*` does not stop at a slash


def fetch_folder(name: str, key: str, alternatives: Sequence[Alternative], lacking: str) -> Path:
    """The folder of a hub model in the hub's own cache, in the first alternative that is complete.

    Cached files are used as they are, also offline, so that a resumed run finds the same weights. `lacking` says what
    is missing if no alternative is complete. Raises InputError that begins with `key`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    why = lacking
    for cached in (True, False):
        if not cached:
            logger.info("Looking for '%s' on the Hugging Face hub.", name)
        try:
            why = lacking
            for form in alternatives:
                ignored = None if form.subfolders else "*/*"
                # Of the two ways to download, this one says at once when the hub cannot be reached.
                found = snapshot_download(
                    name, allow_patterns=list(form.files), ignore_patterns=ignored, local_files_only=cached
                )
                folder = Path(found)
                if form.complete(folder):
                    return folder
        except LocalEntryNotFoundError:
            why = "it is neither a folder nor in the local cache, and the hub cannot be reached"
        except GatedRepoError:
            why = "it requires consent; accept its terms there, then run `hf auth login`"
        except RepositoryNotFoundError:
            why = "there is no folder or model of that name; a private model needs `hf auth login`"
        except Exception as error:  # the client's errors share no base class, and some are its HTTP library's
            why = first_line(error)
    raise InputError(f"{key}: '{name}' could not be downloaded from the Hugging Face hub: {why}.")
