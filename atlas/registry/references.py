"""References to models: a folder, `wandb:entity/project/name:alias`, or `hf:owner/name`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from atlas.errors import InputError

WANDB, HUB = "wandb:", "hf:"
SOMEBODY = "ENTITY"  # in a card that is written before the entity is known
REGISTRY_PREFIX = "wandb-registry-"  # of the project in which wandb keeps a registry

_PART = r"(?!\.\.?(?:[/:]|$))[^/:\s]+"  # no `.` and `..`: parts are folders in the cache
_ARTIFACT = re.compile(rf"(?:(?P<entity>{_PART})/)?(?P<project>{_PART})/(?P<name>{_PART})(?::(?P<alias>[^/:]+))?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_VERSION = re.compile(r"v\d+")
_NAME_LENGTH = 128  # the longest name that wandb accepts


@dataclass(frozen=True)
class ArtifactReference:
    """A model in wandb. Without an entity it is the user's own or, in a registry, the organization's."""

    entity: str | None
    project: str
    name: str
    alias: str | None  # an alias, which may move, or a version `vN`, which never changes

    @property
    def is_version(self) -> bool:
        return self.alias is not None and is_version(self.alias)

    @property
    def collection(self) -> str:
        """`entity/project/name`, as wandb's API takes it."""
        return "/".join(part for part in (self.entity, self.project, self.name) if part)

    @property
    def path(self) -> str:
        """`entity/project/name:alias`, as wandb's API takes it."""
        return self.collection if self.alias is None else f"{self.collection}:{self.alias}"

    def at(self, alias: str) -> ArtifactReference:
        return replace(self, alias=alias)

    def __str__(self) -> str:
        return WANDB + self.path


def is_version(alias: str) -> bool:
    """Whether an alias is a version such as v3, which the server gives and never moves."""
    return _VERSION.fullmatch(alias) is not None


def kind_of(reference: str | Path) -> Literal["wandb", "hf", "folder"]:
    """Tell where a reference points, judged by its prefix; without one it is a folder."""
    text = str(reference)
    if text.startswith(WANDB):
        return "wandb"
    return "hf" if text.startswith(HUB) else "folder"


def parse_artifact(text: str) -> ArtifactReference:
    """Read `[wandb:]entity/project/name:alias`, or `[org/]wandb-registry-REGISTRY/collection:alias`.

    Raises InputError for any other form, and if the alias is missing.
    """
    reference = parse_collection(text)
    if reference.alias is None:
        raise InputError(f"'{text}' names no version: add an alias such as :latest or :best, or a version such as :v3.")
    return reference


def parse_collection(text: str) -> ArtifactReference:
    """Like `parse_artifact`, but the alias may be missing. Raises InputError for any other form."""
    match = _ARTIFACT.fullmatch(text.removeprefix(WANDB))
    if match is None or (match["entity"] is None and not match["project"].startswith(REGISTRY_PREFIX)):
        raise InputError(
            f"'{text}' is not a reference to a model in wandb, such as wandb:entity/project/name:best or "
            "wandb:wandb-registry-models/cubes:prod."
        )
    return ArtifactReference(match["entity"], match["project"], match["name"], match["alias"])


def parse_hub(text: str) -> str:
    """The `owner/name` of `hf:owner/name`. Raises InputError for any other form."""
    name = text.removeprefix(HUB)
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"'{text}' is not a reference to the Hugging Face hub, such as hf:owner/name.")
    return name


def registry_path(text: str) -> str:
    """wandb's path for `registry/collection`, with or without the organization in front. Raises InputError."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(re.fullmatch(_PART, part) for part in parts):
        raise InputError(
            f"'{text}' is not a registry's collection; it should be REGISTRY/COLLECTION, such as models/cubes."
        )
    *organization, registry, collection = parts
    return "/".join([*organization, REGISTRY_PREFIX + registry.removeprefix(REGISTRY_PREFIX), collection])


def safe_name(name: str) -> str:
    """A name that an artifact may have, close to the given one."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")[:_NAME_LENGTH] or "model"


def check_alias(alias: str) -> str:
    """The alias, if it is a valid one. Raises InputError."""
    if not re.fullmatch(r"[^/:]+", alias):
        raise InputError(f"'{alias}' cannot be an alias: it is empty, or contains / or :.")
    if is_version(alias):
        raise InputError(f"'{alias}' cannot be an alias: wandb gives the versions v0, v1, … itself.")
    return alias
