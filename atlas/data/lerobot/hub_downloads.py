"""LeRobot datasets on the Hugging Face hub, in the hub's own cache: downloaded once, resumable, usable offline."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atlas.config.data_sections import FeaturesConfig
from atlas.data.lerobot.episodes import missing_files, read_episodes, read_tasks
from atlas.data.lerobot.extras import read_extras
from atlas.data.lerobot.features import find_features
from atlas.data.lerobot.info import INFO, read_info
from atlas.errors import InputError, first_line

logger = logging.getLogger(__name__)

PREFIX = "hf:"
_REFERENCE = re.compile(r"hf:(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>(?!\S*\.\.)[\w./-]+))?")
_META = ["meta/*"]  # the hub's `*` does not stop at a slash


class HubReference(NamedTuple):
    """`hf:owner/name[@revision]`; a revision is a branch, a tag or a commit."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")


def parse_reference(text: str) -> HubReference:
    """Parse `hf:owner/name[@revision]`. Raises InputError for any other form."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InputError(
            f"'{text}' is not a reference to a dataset on the Hugging Face hub, such as hf:lerobot/libero or "
            "hf:lerobot/libero@v3.0."
        )
    return HubReference(match["name"], match["revision"])


def fetch_dataset(
    reference: HubReference, features: FeaturesConfig | None = None, cameras: Sequence[str] | None = None
) -> Path:
    """The folder of a hub dataset, with its metadata, its data files, and the videos of the cameras.

    Cached files are used as they are, without asking the hub, so that a resumed run finds the same data. What is
    missing is downloaded from the same commit; an interrupted download continues where it stopped.
    Raises InputError if something is missing and cannot be downloaded, or is not a LeRobot dataset.
    """
    root = _cached(reference)
    if root is None or not (root / INFO).is_file():
        root = _fetch(reference, reference.revision, _META)
    if not (root / INFO).is_file():
        raise InputError(f"data.path: '{reference}' is not a LeRobot dataset: it has no {INFO}.")
    if _metadata_is_partial(root):
        _fetch(reference, root.name, _META)
    info = read_info(root)
    known = read_tasks(root, info)
    found = find_features(info, features, cameras=cameras, extras=read_extras(root), tasks=list(known[1].values()))
    keys = found.video_keys
    missing = missing_files(root, read_episodes(root, info, known, keys).all_files())
    if missing:
        # Folders rather than names, which are many; each key has its own folder in every version.
        fetched = _fetch(reference, root.name, ["data/*", *(f"videos/*{key}/*" for key in keys)])
        assert fetched == root
    return root


def _metadata_is_partial(root: Path) -> bool:
    meta = root / "meta"
    return not ((meta / "episodes.jsonl").is_file() and (meta / "tasks.jsonl").is_file()) and not (
        (meta / "tasks.parquet").is_file() and any((meta / "episodes").glob("*/*.parquet"))
    )


def _cached(reference: HubReference) -> Path | None:
    """The part of the dataset that is in the hub's cache, complete or not; None if nothing is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            reference.name, repo_type="dataset", revision=reference.revision, local_files_only=True
        )
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None
    return Path(found)


def _fetch(reference: HubReference, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download what matches the patterns and is not in the cache. Raises InputError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    logger.info("Downloading %s of %s from the Hugging Face hub.", ", ".join(patterns), reference)
    try:
        # Of the two ways to download, this one says at once when the hub cannot be reached.
        found = snapshot_download(reference.name, repo_type="dataset", revision=revision, allow_patterns=list(patterns))
        return Path(found)
    except LocalEntryNotFoundError:
        why = (
            "it is not, or not completely, in the local cache, and the hub cannot be reached; download it where there "
            "is a network, or give the folder of a copy"
        )
    except GatedRepoError:
        why = "it requires consent; accept its terms there, then run `hf auth login`"
    except RepositoryNotFoundError:
        why = "there is no dataset of that name; a private one needs `hf auth login`"
    except RevisionNotFoundError:
        why = f"it has no revision '{revision}'"
    except Exception as error:  # the client's errors share no base class, and some are its HTTP library's
        why = first_line(error)
    raise InputError(f"data.path: '{reference}' could not be downloaded from the Hugging Face hub: {why}.")
