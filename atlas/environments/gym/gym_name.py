"""The name of a gymnasium environment, which includes how to read it: `gym:ID?key=value&key=value`.

Worker processes, reports and recordings know a world only by its name. So that the name means the same world to each,
it holds everything that differs from the defaults. Values are YAML and keys may be dotted, as in config overrides:
`gym:gym_pusht/PushT-v0?make.obs_type=pixels_agent_pos&cameras.top=pixels`.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from atlas.config.assignments import inside, split_assignment
from atlas.config.gym_section import GymConfig
from atlas.environments.gym.gym_presets import PRESETS
from atlas.errors import InputError, did_you_mean, first_line

PREFIX = "gym:"


def gym_name(name: str, config: GymConfig) -> str:
    """The name of an environment `gym:ID` that is read as the config says. Raises InputError where `name` already holds
    settings, or names another kind of world."""
    stated = config.model_dump(mode="json", exclude_defaults=True)
    if not stated:
        return name
    if not name.startswith(PREFIX) or "?" in name:
        raise InputError(
            f"evaluation.gym says how a gymnasium environment is read, but evaluation.env is '{name}'; expected "
            "gym:ID, such as gym:Pendulum-v1, with nothing after the ID."
        )
    return f"{name}?{'&'.join(f'{key}={_as_text(value)}' for key, value in sorted(stated.items()))}"


def read_name(name: str) -> tuple[str, GymConfig]:
    """(gymnasium's id, the settings) of a name that begins with `gym:`, or of a preset. Raises InputError, which names
    the key, for wrong settings."""
    if name in PRESETS:
        return PRESETS[name].identifier, PRESETS[name].config
    identifier, _, query = name.removeprefix(PREFIX).partition("?")
    if not identifier:
        raise InputError(f"'{name}' names no environment; expected gym:ID, such as gym:Pendulum-v1.")
    values: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        try:
            sections, key, value = split_assignment(part, "success=is_success")
            inside(values, sections, part)[key] = value
        except InputError as error:
            raise InputError(f"'{name}': {error}") from None
    try:
        return identifier, GymConfig(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(each) for each in problem["loc"])
        known = ", ".join(GymConfig.model_fields)
        if problem["type"] == "extra_forbidden":
            near = did_you_mean(key, GymConfig.model_fields)
            raise InputError(f"'{name}': unknown key '{key}'.{near} Known: {known}.") from None
        raise InputError(f"'{name}': {key}: {problem['msg'].removeprefix('Value error, ')}.") from None
    except TypeError as error:
        raise InputError(f"'{name}': {first_line(error)}.") from None


def _as_text(value: Any) -> str:
    """The value as JSON, which is also YAML, with `&` escaped."""
    return json.dumps(value, separators=(", ", ": ")).replace("&", "\\u0026")
