"""The origin of a dataset, judged by its folder, and thus how to repair a damaged file."""

from __future__ import annotations

from pathlib import Path

_PARENTS = 12  # parent folders of a file that are looked at


def from_hub(path: Path) -> bool:
    """Whether a file or folder was downloaded from the Hugging Face hub: into its cache, or into a user's folder.

    The cache has `…/snapshots/<commit>/` beside `…/refs/` and `…/blobs/`; in other folders the client leaves notes.
    """
    for folder in (path, *list(path.absolute().parents)[:_PARENTS]):
        if folder.parent.name == "snapshots" and (folder.parents[1] / "blobs").is_dir():
            return True
        if (folder / ".cache" / "huggingface" / "download").is_dir():
            return True
    return False


def mend(path: Path) -> str:
    """The last sentence of a message: what to do about a file that is missing, cut off or not what it should be."""
    if from_hub(path):
        return "Download the dataset again."
    return "Copy the file again if it is a copy; else repair the dataset, or leave out damaged parts (--skip-damaged)."
