"""Sending a saved policy to the Hugging Face hub, in the form in which `hf:owner/name` finds it again."""

from __future__ import annotations

import logging
from pathlib import Path

from atlas.errors import InputError, first_line
from atlas.registry.local_policy import find_policy
from atlas.registry.references import HUB, kind_of, parse_hub
from atlas.system.file_store import CARD, artifact_files, total_bytes

logger = logging.getLogger(__name__)


def push_to_hub(path: str | Path, reference: str, card: str | None = None, private: bool = False) -> str:
    """Upload the policy of a run, a checkpoint or a folder as one commit to the hub's main branch; returns its address.

    path: of a run, its best checkpoint's policy; a folder in LeRobot's form goes as it is. reference: `hf:owner/name`,
    which is made if it is not there. card: README.md, instead of the folder's. Optimizer states stay here: the hub's
    copy is to be used, not resumed. Raises InputError if the policy is damaged or the hub refuses it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if kind_of(reference) != "hf":
        raise InputError(f"'{reference}' is not a place to send a model to, such as hf:owner/name; wandb needs none.")
    name = parse_hub(reference)
    folder = find_policy(Path(path).expanduser(), str(path))
    files = artifact_files(folder)
    operations = [
        CommitOperationAdd(place, str(file)) for place, file in files.items() if card is None or place != CARD
    ]
    if card is not None:
        operations.append(CommitOperationAdd(CARD, card.encode()))
    hub = HfApi()
    logger.info("Uploading %s to %s%s: %d files, %.1f MB.", folder, HUB, name, len(files), total_bytes(files) / 1e6)
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        sent = hub.create_commit(name, operations, commit_message="A policy trained with Atlas")
    except HfHubHTTPError as error:
        raise InputError(f"{HUB}{name}: {_explained(error.response.status_code, error)}") from None
    except Exception as error:  # the client's errors share no base class, and some are its HTTP library's
        raise InputError(f"{HUB}{name}: {folder} could not be uploaded: {first_line(error)}") from None
    return str(sent.commit_url)


def _explained(status: int, error: Exception) -> str:
    if status == 401:
        return "the hub does not know you; run `hf auth login`, or set HF_TOKEN to a token that may write."
    if status == 403:
        return "your token may not write there; use one with write access, and an owner that you belong to."
    return f"the hub refused the upload: {first_line(error)}"
