"""What a reference may look like."""

from __future__ import annotations

import pytest

from atlas.errors import InputError
from atlas.registry.references import (
    ArtifactReference,
    check_alias,
    kind_of,
    parse_artifact,
    parse_collection,
    parse_hub,
    registry_path,
    safe_name,
)


@pytest.mark.parametrize(
    ("text", "entity", "project", "name", "alias", "is_version"),
    [
        ("wandb:me/atlas-vla/my-run:best", "me", "atlas-vla", "my-run", "best", False),
        ("me/atlas-vla/my-run:v12", "me", "atlas-vla", "my-run", "v12", True),
        ("wandb:me/atlas-vla/my-run:step-100", "me", "atlas-vla", "my-run", "step-100", False),
        ("wandb:wandb-registry-models/cubes:prod", None, "wandb-registry-models", "cubes", "prod", False),
        ("wandb:lab/wandb-registry-models/cubes:v0", "lab", "wandb-registry-models", "cubes", "v0", True),
    ],
)
def test_a_reference_is_taken_apart(
    text: str, entity: str | None, project: str, name: str, alias: str, is_version: bool
) -> None:
    reference = parse_artifact(text)
    assert reference == ArtifactReference(entity, project, name, alias)
    assert reference.is_version == is_version
    assert str(reference) == "wandb:" + text.removeprefix("wandb:")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("wandb:my-run:best", "wandb:entity/project/name:best"),
        ("wandb:project/name:best", "wandb:entity/project/name:best"),
        ("wandb:a/b/c/d:best", "wandb:entity/project/name:best"),
        ("wandb:../../x:v1", "wandb:entity/project/name:best"),
        ("wandb:a/../x:v1", "wandb:entity/project/name:best"),
        ("wandb:a/b/c:x:y", "wandb:entity/project/name:best"),
        ("wandb:a/b/c", ":latest or :best"),
    ],
)
def test_another_form_is_refused_with_the_right_one(text: str, right: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_artifact(text)
    assert text in str(refused.value) and right in str(refused.value)


def test_a_collection_needs_no_alias() -> None:
    assert parse_collection("me/p/name") == ArtifactReference("me", "p", "name", None)


@pytest.mark.parametrize(
    ("reference", "kind"), [("wandb:a/b/c:v1", "wandb"), ("hf:a/b", "hf"), ("outputs/run", "folder"), (".", "folder")]
)
def test_the_prefix_says_where_a_reference_points(reference: str, kind: str) -> None:
    assert kind_of(reference) == kind


@pytest.mark.parametrize("text", ["hf:", "hf:owner", "hf:a/b/c", "hf:../b"])
def test_a_name_of_the_hub_has_an_owner(text: str) -> None:
    assert parse_hub("hf:owner/name-1.0") == "owner/name-1.0"
    with pytest.raises(InputError, match="hf:owner/name"):
        parse_hub(text)


def test_a_registry_is_named_with_its_collection() -> None:
    assert registry_path("models/cubes") == "wandb-registry-models/cubes"
    assert registry_path("wandb-registry-models/cubes") == "wandb-registry-models/cubes"
    assert registry_path("lab/models/cubes") == "lab/wandb-registry-models/cubes"
    for wrong in ("models", "a/b/c/d", "models/cubes:prod", "models/"):
        with pytest.raises(InputError, match="REGISTRY/COLLECTION"):
            registry_path(wrong)


@pytest.mark.parametrize("alias", ["", "a/b", "a:b", "v3"])
def test_an_alias_that_cannot_be_one_is_refused(alias: str) -> None:
    assert check_alias("prod") == "prod"
    with pytest.raises(InputError, match="cannot be an alias"):
        check_alias(alias)


@pytest.mark.parametrize(
    ("name", "safe"), [("my run", "my-run"), ("a/b:c", "a-b-c"), ("机器人", "model"), ("x" * 200, "x" * 128)]
)
def test_any_name_becomes_one_that_wandb_takes(name: str, safe: str) -> None:
    assert safe_name(name) == safe
