"""Reading a config from YAML, changing it by `key=value` overrides, and saying what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from atlas.config.config import Config
from atlas.errors import InputError, did_you_mean

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "train_config.yaml"


def load_config(source: str | Path | Config | dict[str, Any] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config from a YAML file (None: the default one), a mapping or a Config, with overrides on top.

    overrides: 'key=value' with dotted keys, values as YAML: 'training.learning_rate=3e-4', 'data.cameras=[agentview]'.
    Raises InputError that names the key, and the nearest valid one where it is unknown.
    """
    name = "the config"
    if isinstance(source, Config):
        values = source.model_dump()
    elif isinstance(source, dict):
        values = yaml.safe_load(yaml.safe_dump(source))
    else:
        path = Path(source) if source is not None else DEFAULT_CONFIG
        name = str(path)
        values = _read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, name)


def parse_config(values: dict[str, Any], name: str = "the config") -> Config:
    """A checked Config of plain values; `name` says in messages where they are from. Raises InputError."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_explain(dict(problem)) for problem in error.errors()]
        raise InputError(f"In {name}: " + "\n".join(problems)) from None


def dump_yaml(config: Config) -> str:
    """The whole config, defaults included, as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_schema() -> dict[str, Any]:
    """The JSON schema of the config file, for editors."""
    return Config.model_json_schema()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"The config file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The config file {path} is not a text file.") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"The config file {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"The config file {path} must hold sections such as 'data:', it holds a {type(values)}.")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"'{override}' is not an override; it should be key=value, such as training.max_steps=100.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"The value in '{override}' is not valid YAML: {error}") from None
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise InputError(f"'{override}': '{section}' is a value and has no keys below it.")
    if sections[:1] == ["model"] and last == "name" and place.get("name") != value:
        place.clear()  # another kind of part: the settings of the old one are not its own
    place[last] = value


def _explain(problem: dict[str, Any]) -> str:
    """One line for one of pydantic's complaints, in the words of the file."""
    location = problem["loc"]
    # Where a section comes in several kinds, the location holds the kind's name, which is no key of the file.
    key = ".".join(str(part) for i, part in enumerate(location) if not isinstance(_section(location[:i]), list))
    if problem["type"] == "extra_forbidden":
        section = _section(location[:-1])
        known = [] if section is None or isinstance(section, list) else list(section.model_fields)
        return f"unknown key '{key}'.{did_you_mean(str(location[-1]), known)} Known here: {', '.join(sorted(known))}."
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = "" if isinstance(problem["input"], dict | BaseModel) else f" (given: {problem['input']!r})"
    return f"'{key}': {message}{given}" if key else f"{message}{given}"


def _section(location: Sequence[Any]) -> type[BaseModel] | list[type[BaseModel]] | None:
    """The section at a location of pydantic's; a list where it comes in kinds and none is chosen; None for a value."""
    section: type[BaseModel] | list[type[BaseModel]] | None = Config
    for part in location:
        if isinstance(section, list):
            section = next((kind for kind in section if kind.model_fields["name"].default == part), None)
        elif section is not None and part in section.model_fields:
            section = _sections_in(section.model_fields[part].annotation)
        else:
            return None
    return section


def _sections_in(annotation: Any) -> type[BaseModel] | list[type[BaseModel]] | None:
    members = getattr(annotation, "__args__", (annotation,))
    sections = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    return sections if len(sections) > 1 else next(iter(sections), None)
