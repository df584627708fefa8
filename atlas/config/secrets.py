"""Keep keys and passwords written into the config out of the run's files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from atlas.config.reading import parse_config
from atlas.config.root import Config
from atlas.errors import InputError
from atlas.system.safe_text import CERTAIN_SECRET, redact

logger = logging.getLogger(__name__)

# Keys of the config that only describe a run, and do not change what it does.
_DESCRIPTIONS = ("wandb.notes", "wandb.name", "wandb.tags", "wandb.group")


def without_keys(config: Config) -> Config:
    """The config without keys and passwords written into it, since it is stored in files and sent to others.

    In fields that only describe the run they become `***`, with a warning. Raises InputError, without showing the
    value, if one is in a field that decides what the run does.
    """
    values = config.model_dump(mode="json")
    found = [place for place in _texts(values) if place.text != redact(place.text)]
    for place in found:
        if place.key.startswith(_DESCRIPTIONS):
            place.holder[place.index] = redact(place.text)
            logger.warning("%s held a key or a password, which is left out.", place.key)
        elif place.text != redact(place.text, CERTAIN_SECRET):
            raise InputError(
                f"{place.key} holds a key, a password or a login, which would be stored in the run's files. Leave it "
                "out: keys are taken from the environment, such as WANDB_API_KEY and HF_TOKEN."
            )
    return parse_config(values) if found else config


@dataclass(frozen=True)
class _Place:
    """A text within nested values."""

    key: str
    holder: Any  # the mapping or list that contains it
    index: Any

    @property
    def text(self) -> str:
        return str(self.holder[self.index])


def _texts(values: Any, key: str = "") -> Iterator[_Place]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    for index, value in list(pairs):
        name = f"{key}.{index}".lstrip(".")
        if isinstance(value, dict | list):
            yield from _texts(value, name)
        elif isinstance(value, str):
            yield _Place(name, values, index)
