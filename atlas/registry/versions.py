"""The models in wandb: lists them and their versions, promotes one to a registry, removes old ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atlas.errors import InputError
from atlas.registry.client import MODEL, connect, explained
from atlas.registry.download import look_up
from atlas.registry.references import (
    ArtifactReference,
    check_alias,
    is_version,
    parse_artifact,
    parse_collection,
    registry_path,
)

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step-\d+")
_SET_BY_TRAINING = re.compile(r"latest|step-\d+")  # these do not keep a version from being removed; `best` does


@dataclass(frozen=True)
class ModelVersions:
    """A model of a project and its versions, oldest first (wandb's Artifact objects)."""

    reference: ArtifactReference
    versions: Sequence[Any]


def list_models(project: str, name: str | None = None, entity: str | None = None) -> list[ModelVersions]:
    """The models of a project, or the one of that name, with their versions.

    entity: the owner; None: the user that the key belongs to. Raises InputError.
    """
    api = connect()
    entity = entity or api.default_entity
    with explained(f"The models of {entity}/{project} cannot be listed"):
        if name is not None:
            names = [name]
        else:
            try:
                names = sorted(found.name for found in api.artifact_type(MODEL, f"{entity}/{project}").collections())
            except ValueError:  # wandb raises it if the project has none
                names = []
        references = [ArtifactReference(entity, project, found, None) for found in names]
        listed = [ModelVersions(reference, versions_of(reference, api)) for reference in references]
    if name is not None and not listed[0].versions:
        raise InputError(f"There is no model {entity}/{project}/{name}, or this key may not see it.")
    return listed


def versions_of(reference: ArtifactReference, api: Any) -> list[Any]:
    """The versions of a model, oldest first; none if there is no such model."""
    from wandb.errors import CommError

    try:
        return sorted(api.artifacts(MODEL, reference.collection), key=_number)
    except ValueError:  # wandb raises it if there is none
        return []
    except CommError as error:
        if isinstance(error.exc, ValueError):
            return []
        raise


def promote(reference: str, registry: str, aliases: Sequence[str] = ()) -> ArtifactReference:
    """Link a version to a registry's collection, where the aliases then point to it; returns its reference there.

    reference: for example entity/project/name:v3; registry: for example models/cubes. Raises InputError.
    """
    source, target = parse_artifact(reference), registry_path(registry)
    checked = [check_alias(alias) for alias in aliases]
    artifact = look_up(source, connect())
    with explained(f"{source} cannot be linked to {registry}"):
        linked = artifact.link(target, aliases=checked)
    return parse_collection(linked.qualified_name).at(linked.version)


@dataclass(frozen=True)
class Pruned:
    """The versions of a model that were removed, or would be."""

    removed: list[str]
    kept: list[str]


def prune(reference: str, keep_last_n: int, dry_run: bool = False) -> Pruned:
    """Remove a model's older versions, except the last `keep_last_n` and those that are still wanted.

    A version is wanted if it has `best`, an alias set by somebody, or a link to a registry. Raises InputError.
    """
    if keep_last_n < 1:
        raise InputError(f"{keep_last_n} versions cannot be kept; at least the latest one stays.")
    model = parse_collection(reference)
    if model.alias is not None:
        raise InputError(f"'{reference}' is one version; name the model alone: {model.collection}.")
    api = connect()
    with explained(f"The versions of {model.collection} cannot be pruned"):
        versions = versions_of(model, api)
        if not versions:
            raise InputError(f"There is no model {model.collection}, or this key may not see it.")
        removed = remove_old(versions, keep_last_n, dry_run)
    return Pruned(removed, [version.version for version in versions if version.version not in removed])


def remove_old(
    versions: Sequence[Any], keep_last_n: int, dry_run: bool = False, linked_to: str | None = None
) -> list[str]:
    """Delete all of these (Artifact objects) but the last `keep_last_n` and the wanted ones; returns what was deleted.

    linked_to: `wandb-registry-REGISTRY/COLLECTION` that training itself links its models to: such a link keeps a
    version only while an alias points to it there. Raises what wandb raises.
    """
    removed = []
    for artifact in sorted(versions, key=_number)[:-keep_last_n]:
        if artifact.is_link or not all(_SET_BY_TRAINING.fullmatch(alias) for alias in artifact.aliases):
            continue
        links = list(artifact.linked_artifacts)  # a registry's files would be deleted with it
        if not all(_set_by_training(link, linked_to) for link in links):
            continue
        if not dry_run:
            for link in links:
                link.unlink()
            artifact.delete(delete_aliases=True)
            logger.info("Removed %s", artifact.name)
        removed.append(artifact.version)
    return removed


def _set_by_training(link: Any, linked_to: str | None) -> bool:
    """Whether training made a link, and nothing in the registry points to it."""
    if linked_to is None or not link.qualified_name.partition(":")[0].endswith(f"/{linked_to}"):
        return False
    return all(is_version(alias) or _STEP.fullmatch(alias) for alias in link.aliases)


def _number(artifact: Any) -> int:
    return int(artifact.version[1:])
