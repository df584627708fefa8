"""References to policies and checkpoints: folders, and models that are downloaded into folders."""

from __future__ import annotations

from pathlib import Path

from atlas.errors import InputError
from atlas.registry.lerobot_policies import (
    LEROBOT_BESIDE,
    LEROBOT_FILES,
    LEROBOT_NEEDED,
    check_lerobot_policy,
    is_lerobot_policy,
)
from atlas.registry.references import HUB, kind_of
from atlas.system.file_store import CONFIG
from atlas.system.files import follow
from atlas.system.manifest import verify_policy

POLICY_FILES = ("model.safetensors", CONFIG, "processor.json")
# Apart from README.md: the frozen parts of a policy that is saved in full, those of modular policies and of other
# types, and for a published policy the other files of LeRobot's folder.
_BESIDE = ("README.md", "vision.safetensors", "language/*", "frozen/*", "lerobot/*")


def resolve_policy(reference: str | Path) -> Path:
    """The verified local directory of a saved policy.

    reference: a directory (the policy, a checkpoint, or a run, which means its best checkpoint),
    `wandb:entity/project/name:alias`, or `hf:owner/name`. Raises InputError if there is none, if a file is missing, or
    if it cannot be downloaded.
    """
    kind = kind_of(reference)
    if kind == "hf":
        return fetch_hub_policy(str(reference))
    if kind == "folder":
        return find_policy(Path(reference).expanduser(), str(reference))
    from atlas.registry.download import fetch_artifact

    return find_policy(fetch_artifact(str(reference)).path, str(reference))


def find_policy(root: Path, called: str) -> Path:
    """The saved policy in a folder: the folder itself, its `policy/`, or that of its best checkpoint, undamaged.

    Raises InputError.
    """
    root = follow(root)
    best = (follow(folder / "best") / "policy" for folder in (root / "checkpoints", root))
    candidates = (root, root / "policy", *best)
    for folder in candidates:
        if is_lerobot_policy(folder):
            check_lerobot_policy(folder)
            return folder
        if (folder / "processor.json").exists() or (folder / "model.safetensors").exists():
            missing = [name for name in POLICY_FILES if not (folder / name).exists()]
            if missing:
                raise InputError(f"The saved policy {folder} lacks {', '.join(missing)}.")
            verify_policy(folder, POLICY_FILES)
            return folder
    if not root.exists():
        raise InputError(f"There is no policy at {called}: no such folder.")
    if (follow(root / "checkpoints" / "latest") / "policy").is_dir():
        raise InputError(
            f"The run {called} has no best checkpoint, since it was neither validated nor evaluated. Its last one is "
            f"{called}/checkpoints/latest."
        )
    raise InputError(f"There is no policy at {called}: it holds none of {', '.join(POLICY_FILES)}.")


def fetch_checkpoint(reference: str) -> Path:
    """The verified local directory of a whole checkpoint in wandb, to resume training from: see `--resume`.

    It holds `policy/`, `trainer/` and the run's `config.yaml`, whose `run_name` is the run's. The directory belongs to
    the cache: read it, and write elsewhere. Raises InputError if it cannot be downloaded or is only a policy.
    """
    from atlas.registry.download import fetch_artifact

    folder = fetch_artifact(reference).path
    missing = [name for name in ("trainer/state.json", "policy/processor.json", CONFIG) if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{reference} is not a checkpoint to resume training from: it lacks {', '.join(missing)}. "
            "A policy alone can be loaded with atlas.load_policy, and evaluated."
        )
    return folder


def fetch_hub_policy(reference: str) -> Path:
    """The local directory of a policy of the hub, `hf:owner/name`, Atlas's or LeRobot's. Raises InputError."""
    from atlas.registry.references import parse_hub
    from atlas.system.hub import Alternative, fetch_folder

    def complete(folder: Path) -> bool:
        return all((folder / name).is_file() for name in POLICY_FILES)

    name = parse_hub(reference)
    own = Alternative((*POLICY_FILES, *_BESIDE), complete, subfolders=True)
    others = Alternative((*LEROBOT_FILES, *LEROBOT_BESIDE), is_lerobot_policy, subfolders=True)
    needed = f"{', '.join(POLICY_FILES)}, or of {' and '.join(LEROBOT_NEEDED)} as LeRobot has them"
    return fetch_folder(name, HUB + name, [own, others], f"it lacks some of {needed}")
