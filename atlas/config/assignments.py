"""`key.key=value` as users write it, in overrides of a config and in names of environments; settings by dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas.errors import InputError, first_line
from atlas.system.documents import parse_yaml


def split_assignment(text: str, example: str) -> tuple[list[str], str, Any]:
    """The sections, the key in the last of them, and the value, read as YAML. Raises InputError.

    example: an assignment that would be right, for the message.
    """
    key, equals, written = text.partition("=")
    if not equals or not key:
        raise InputError(f"'{text}' should be key=value, such as {example}.")
    try:
        value = parse_yaml(written)
    except ValueError as error:
        raise InputError(f"'{text}': the value of {key} is not valid YAML: {first_line(error)}.") from None
    *sections, last = key.split(".")
    return sections, last, value


def inside(values: dict[str, Any], sections: list[str], text: str) -> dict[str, Any]:
    """The mapping that these sections lead to, made where there is none. Raises InputError that quotes `text` where a
    value is in the way."""
    place = values
    for section in sections:
        if place.get(section) is None:  # a section that is off until one of its keys is set
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise InputError(f"'{text}': '{section}' is a value and has no keys below it.")
    return place


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys; an empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found
