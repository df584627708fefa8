"""The config of an `atlas learn` run: from the run whose policy is improved, or for training from scratch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from atlas.config import Config, load_config
from atlas.config.assignments import dotted
from atlas.environments.catalog import environment_spec
from atlas.errors import InputError
from atlas.system.documents import read_yaml
from atlas.system.file_store import CONFIG
from atlas.system.files import follow
from atlas.system.paths import file_name


def config_of_run(checkpoint: str, name: str, overrides: Sequence[str]) -> Config:
    """The config of the checkpoint's run, with overrides on top; `run_name` is that run's, followed by the algorithm's
    name.

    checkpoint: a run's folder, or a folder in it. Raises InputError if it is in no run: a policy alone does not say
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
    saved = load_config(folder / CONFIG)
    config = load_config(saved.model_copy(update={"run_name": f"{folder.resolve().name}-{name}"}), overrides)
    if config.run_dir.resolve() == folder.resolve():
        raise InputError(f"run_name is {config.run_name}, which is the run that is learned from. Choose another.")
    return config


def settings_of(file: Path) -> list[str]:
    """The settings of a YAML file, as overrides of a run's config. Raises InputError."""
    try:
        values = read_yaml(file)
    except (OSError, ValueError) as error:
        raise InputError(f"--config {file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"--config {file} holds no settings; expected sections such as learning:")

    return [f"{key}={json.dumps(value)}" for key, value in dotted(values).items()]


def config_from_nothing(name: str, env: str, overrides: Sequence[str]) -> Config:
    """The default config, with a small policy that uses only the state and outputs single actions; `run_name` is the
    world's name followed by the algorithm's. Raises InputError."""
    several_tasks = len(environment_spec(env).instructions) > 1
    smaller = [
        "model.vision={name: none}",
        "model.fusion={name: mlp}",
        f"model.head={{name: gaussian{_HEADS.get(name, '')}}}",
        f"model.language={{name: {'bytes' if several_tasks else 'none'}}}",
        "model.processor={action_normalization: min_max, proprio_normalization: mean_std}",
        "data.action_horizon=1",
        "evaluation.execute=1",
        f"run_name={file_name(env.partition(':')[2].partition('?')[0] or env)}-{name}",
    ]
    return load_config(None, [*smaller, *overrides])


# Unlike SAC's: one deviation for all states, not squashed, as is usual for methods based on density ratios.
_HEADS = {name: ", squashed: false, deviation: free, log_std: 0.0" for name in ("ppo", "grpo")}
