"""Models and their versions: from a reference to a verified local directory, and back.

A reference is a directory, `wandb:entity/project/name:alias`, or `hf:owner/name`.
"""

from atlas.registry.local_policy import fetch_checkpoint, resolve_policy
from atlas.registry.pulling import pull
from atlas.registry.pushing import push
from atlas.registry.scripts import download_model, save_and_upload_best, upload_model
from atlas.registry.versions import list_models, promote, prune

__all__ = [
    "download_model",
    "fetch_checkpoint",
    "list_models",
    "promote",
    "prune",
    "pull",
    "push",
    "resolve_policy",
    "save_and_upload_best",
    "upload_model",
]
