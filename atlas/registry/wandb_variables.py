"""wandb's environment variables: they apply where config and flags say nothing, as everywhere with wandb."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas.config import WandbConfig
from atlas.errors import InputError, did_you_mean
from atlas.system.paths import check_folder

DEFAULT_PROJECT = "atlas-vla"
# WANDB_DIR, which no key stands for, is in `wandb_folder`; the mode, where the variable wins, in `effective_mode`.
_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "name": "WANDB_NAME",
    "tags": "WANDB_TAGS",
    "group": "WANDB_RUN_GROUP",
    "notes": "WANDB_NOTES",
}
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


def with_variables(config: WandbConfig, environment: Mapping[str, str]) -> WandbConfig:
    """The config with gaps filled from the variables, and with a project; applying it twice changes nothing."""
    found: dict[str, Any] = {}
    for key, variable in _VARIABLES.items():
        value = environment.get(variable, "").strip()
        if value and not getattr(config, key):
            found[key] = [tag.strip() for tag in value.split(",") if tag.strip()] if key == "tags" else value
    if config.project is None:
        found.setdefault("project", DEFAULT_PROJECT)
    return config.model_copy(update=found)


def project_and_entity() -> tuple[str, str | None]:
    """Return where models and sweeps are if nothing more is said; None: the key's own user or team."""
    own = with_variables(WandbConfig(), os.environ)
    return str(own.project), own.entity


def effective_mode(config: WandbConfig) -> str:
    """'online', 'offline' or 'disabled': $WANDB_MODE if it is set, otherwise `wandb.mode`. Raises InputError."""
    asked = os.environ.get("WANDB_MODE", "").strip().lower()
    if asked and asked not in _MODES:
        right = [mode for mode in _MODES if mode == _MODES[mode]]
        raise InputError(f"WANDB_MODE is '{asked}', expected {', '.join(right)}.{did_you_mean(asked, _MODES)}")
    return _MODES.get(asked, config.mode)


def wandb_folder(run_dir: Path) -> Path:
    """The folder in which wandb makes its own, `wandb`: $WANDB_DIR, otherwise the run's."""
    return Path(os.environ.get("WANDB_DIR") or run_dir)


def check_variables(config: WandbConfig) -> None:
    """Raise InputError if wandb is asked for and cannot do what the variables say."""
    if config.enabled and effective_mode(config) != "disabled" and os.environ.get("WANDB_DIR"):
        check_folder("WANDB_DIR", wandb_folder(Path()))
