"""Reading a config from YAML, changing it by `key=value` overrides, and saying what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from atlas.config.assignments import inside, split_assignment
from atlas.config.chosen_section import Chosen
from atlas.config.model_section import MODEL
from atlas.config.root import Config
from atlas.errors import InputError, did_you_mean
from atlas.system.documents import read_yaml

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "train_config.yaml"


def load_config(source: str | Path | Config | dict[str, Any] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config from a YAML file (None: the default one), a mapping or a Config, with overrides on top.

    overrides: 'key=value' with dotted keys, values as YAML: 'training.learning_rate=3e-4', 'data.cameras=[agentview]'.
    Raises InputError that names the key, and for an unknown key the nearest valid one.
    """
    name = "the config"
    if isinstance(source, Config):
        values = source.model_dump()
    elif isinstance(source, dict):
        values = yaml.safe_load(yaml.safe_dump(source))
    else:
        path = Path(source).expanduser() if source is not None else DEFAULT_CONFIG
        name = str(path)
        values = deepcopy(_default_values()) if path == DEFAULT_CONFIG else _read_yaml(path)
    for place, override in enumerate(overrides):
        _apply_override(values, override, overrides[:place])
    return parse_config(values, name)


def parse_config(values: dict[str, Any], name: str = "the config") -> Config:
    """A checked Config from plain values; `name` is their origin, for messages. Raises InputError."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"In {name}: " + "\n".join(_explain_all([dict(p) for p in error.errors()], values))) from None


def dump_yaml(config: Config) -> str:
    """The whole config, defaults included, as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_schema() -> dict[str, Any]:
    """The JSON schema of the config file, for editors."""
    return Config.model_json_schema()


@cache
def _default_values() -> dict[str, Any]:
    """The packaged file, which does not change while a process runs."""
    return _read_yaml(DEFAULT_CONFIG)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except OSError as error:
        raise InputError(f"The config file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The config file {path} is not a text file.") from None
    except ValueError as error:
        raise InputError(f"The config file {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        held = "a list" if isinstance(values, list) else f"'{values}'"
        raise InputError(f"The config file {path} must hold sections such as 'data:', but holds {held}.")
    return values


def _apply_override(values: dict[str, Any], override: str, before: Sequence[str]) -> None:
    """before: what was applied already. Raises InputError, also for a type that would undo some of it."""
    sections, last, value = split_assignment(override, "training.max_steps=100")
    place = inside(values, sections, override)
    another = place.get("type", MODEL.default) if sections == ["model"] and last == "type" else place.get("name")
    if sections[:1] == ["model"] and last in ("name", "type") and another != value:
        undone = [each for each in before if each.startswith("model.")]
        of_another = any(each.startswith(("model=", "model.type=")) for each in before)  # what follows is that one's
        if last == "type" and undone and not of_another:
            raise InputError(f"'{override}' begins the model again and would undo '{undone[-1]}': put it before that.")
        place.clear()  # a different kind of part: the old one's settings do not apply to it
    place[last] = value


_NO_SECTION = ("model_type", "model_attributes_type", "dict_type")


def _explain_all(problems: Sequence[dict[str, Any]], values: dict[str, Any]) -> list[str]:
    """One line for each key that pydantic complains about; if a value may be of several kinds, it names them all."""
    by_key: dict[str, list[dict[str, Any]]] = {}
    for problem in problems:
        by_key.setdefault(_key(problem, values), []).append(problem)
    return [_explain(key, found, values) for key, found in by_key.items()]


def _key(problem: dict[str, Any], values: Any) -> str:
    """The key in the file that a complaint is about: its location without pydantic's names for alternatives."""
    parts = []
    for part in problem["loc"]:
        there = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        values = values[part] if there else values
        if there or problem["type"] == "missing":
            parts.append(str(part))
    return ".".join(parts)


def _explain(key: str, problems: Sequence[dict[str, Any]], values: dict[str, Any]) -> str:
    """One line for pydantic's complaints about one key, in the file's terms."""
    problem = problems[0]
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        section = _section(location[:-1], values)
        known = [] if section is None else list(section.model_fields)
        return f"unknown key '{key}'.{did_you_mean(str(location[-1]), known)} Known here: {', '.join(sorted(known))}."
    if problem["type"] == "union_tag_invalid":
        kinds = problem["ctx"]
        chosen = f"{key}.{kinds['discriminator']}"
        return f"'{key}': {chosen} should be one of {kinds['expected_tags']} (given: {kinds['tag']!r})"
    messages = [str(p["msg"]).removeprefix("Value error, ") for p in problems]
    if problem["type"] in _NO_SECTION:
        messages = ["should be a section with keys of its own"]
    message = ", or ".join(
        [messages[0][0].lower() + messages[0][1:], *(m.removeprefix("Input should ") for m in messages[1:])]
    )
    given = "" if isinstance(problem["input"], dict | BaseModel) else f" (given: {problem['input']!r})"
    return f"'{key}': {message}{given}" if key else f"{message}{given}"


def _section(location: Sequence[Any], values: Any) -> type[BaseModel] | None:
    """The section at one of pydantic's locations, in values that are wrong somewhere; None for a value."""
    section: type[BaseModel] | None = Config
    for part in location:
        if not isinstance(part, int):  # an int is an index into a list of sections, all of one kind
            field = section.model_fields.get(part) if section is not None else None
            if field is None:
                return None
            chosen = next((mark for mark in field.metadata if isinstance(mark, Chosen)), None)
            section = next(_classes_in(field.annotation), None)
            if chosen is not None:
                section = chosen.kind(values.get(part, {}))
        values = values[part] if isinstance(part, int) else values.get(part, {})
    return section


def _classes_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a value may be, or that a list of it may hold."""
    inside = getattr(annotation, "__args__", ())
    for part in inside:
        yield from _classes_in(part)
    if not inside and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
