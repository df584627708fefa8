"""`atlas config`."""

from __future__ import annotations

import typer

from atlas.cli.options import PLAIN, ConfigFile, Json, Overrides
from atlas.cli.output import print_json

config_app = typer.Typer(help="Show the configuration.", **PLAIN)


@config_app.command("schema")
def schema() -> None:
    """Print the config file's JSON schema, for editors."""
    from atlas.config import config_schema

    print_json(config_schema())


@config_app.command("show")
def show(overrides: Overrides = None, config: ConfigFile = None, as_json: Json = False) -> None:
    """Print the whole config, with defaults and overrides."""
    from atlas.config import dump_yaml, load_config

    resolved = load_config(config, overrides or [])
    if as_json:
        print_json(resolved.model_dump(mode="json"))
    else:
        print(dump_yaml(resolved), end="")
