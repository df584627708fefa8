"""The config of a run that learns from another run's policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlas.config import Config, load_config
from atlas.errors import InputError
from atlas.system.file_store import CONFIG
from atlas.system.files import follow


def config_of_run(checkpoint: str, name: str, overrides: Sequence[str]) -> Config:
    """That of the checkpoint's run, with overrides on top; `run_name` is the run's with the name of what is learned.

    checkpoint: a run's folder, or a folder in it. Raises InputError where it is in no run: a policy alone does not say
    what it was trained on.
    """
    place = follow(Path(checkpoint).expanduser())
    for folder in (place, *place.resolve().parents):
        if (folder / CONFIG).is_file() and (folder / "checkpoints").is_dir():
            break
    else:
        raise InputError(
            f"{checkpoint} is in no run's folder. Give a run, such as outputs/first, or a checkpoint of it: the config "
            "says which demonstrations are trained on beside the experience."
        )
    was = load_config(folder / CONFIG)
    config = load_config(was.model_copy(update={"run_name": f"{folder.resolve().name}-{name}"}), overrides)
    if config.run_dir.resolve() == folder.resolve():
        raise InputError(f"run_name is {config.run_name}, which is the run that is learned from. Choose another.")
    return config
