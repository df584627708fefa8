"""Options that several verbs share, and settings for every group of verbs."""

from __future__ import annotations

import json
import os
import re
from typing import Annotated, Any

import typer

# Plain text instead of boxes: messages are not broken over lines, and --help does not import rich.
PLAIN: dict[str, Any] = {"rich_markup_mode": None, "no_args_is_help": True, "add_completion": False}

ConfigFile = Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML file; default: Atlas's own.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Config keys, such as training.max_steps=100.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
SkipDamaged = Annotated[
    bool, typer.Option("--skip-damaged", help="Leave out damaged files and episodes of the data; each is named.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="W", help="Simulator processes; default: one per core, at most 16 for evaluation."),
]
Project = Annotated[str | None, typer.Option(metavar="P", help="wandb's project; default: the config's, atlas-vla.")]
Entity = Annotated[str | None, typer.Option(metavar="E", help="wandb's user or team; default: the key's user.")]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="auto|DIR|wandb:REFERENCE", help="Continue from a checkpoint; auto: the latest, or a fresh start."
    ),
]


def with_home(argument: str) -> str:
    """An argument with the user's home for `~`, which shells do not expand after `=`: --config=~/a.yaml."""
    found = _HOME.fullmatch(argument)
    return argument if found is None else found[1] + os.path.expanduser(found[2])


_HOME = re.compile(r"((?:[\w.-]+=)?)(~[\w.-]*/.*)", re.DOTALL)


def as_overrides(values: dict[str, Any]) -> list[str]:
    """Values as `key=value`; None means not given. JSON is YAML, so any text survives."""
    return [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in values.items() if v is not None]
