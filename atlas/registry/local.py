"""References that are directories: a saved policy, a checkpoint, or a run."""

from __future__ import annotations

from pathlib import Path

from atlas.errors import InputError

POLICY_FILES = ("model.safetensors", "config.yaml", "processor.json")


def resolve_policy(reference: str | Path) -> Path:
    """The directory of a saved policy: `reference` itself, its `policy/` (a checkpoint), or a run's best checkpoint.

    Raises InputError when there is none, or one with a file missing.
    """
    root = Path(reference).expanduser()
    candidates = (root, root / "policy", root / "checkpoints" / "best" / "policy", root / "best" / "policy")
    for folder in candidates:
        if (folder / "processor.json").exists() or (folder / "model.safetensors").exists():
            missing = [name for name in POLICY_FILES if not (folder / name).exists()]
            if missing:
                raise InputError(f"The saved policy {folder} lacks {', '.join(missing)}.")
            return folder
    if not root.exists():
        raise InputError(f"There is no policy at {root}: no such folder.")
    raise InputError(f"There is no policy at {root}: it holds none of {', '.join(POLICY_FILES)}.")
