"""`atlas model push, pull, list, promote, prune, card`: models and their versions in wandb, and on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas.cli.commands.model_commands import model_app
from atlas.cli.options import Entity, Json, Project
from atlas.cli.output import print_json, print_table, say, stdout_kept_for_the_report
from atlas.errors import InputError

if TYPE_CHECKING:
    from atlas.registry.references import ArtifactReference

Aliases = Annotated[
    list[str] | None, typer.Option("--alias", metavar="ALIAS", help="For example prod; may be given several times.")
]


@model_app.command("push")
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run, a checkpoint or a saved policy.")],
    to: Annotated[
        str | None, typer.Argument(metavar="[hf:OWNER/NAME]", help="On the Hugging Face hub; default: wandb.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the run's name, or the folder's.")] = None,
    alias: Aliases = None,
    project: Project = None,
    entity: Entity = None,
    private: Annotated[bool, typer.Option("--private", help="On the hub, where it is new: for you alone.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a model to wandb or the Hugging Face hub, without a training run."""
    if to is not None:
        of_wandb = {"--name": name, "--alias": alias, "--project": project, "--entity": entity}
        if given := [option for option, value in of_wandb.items() if value]:
            raise InputError(
                f"{' and '.join(given)}: wandb's; {to} has the owner and the name, and the hub no aliases."
            )
        _push_to_hub(folder, to, private, as_json)
        return
    if private:
        raise InputError("--private is of the Hugging Face hub: add hf:OWNER/NAME. In wandb, the project decides.")
    with stdout_kept_for_the_report(as_json):
        from atlas.policies.model_card import checkpoint_card
        from atlas.registry import push as push_model
        from atlas.registry.pushing import model_in

        model = model_in(folder)
        sent = push_model(model, name, alias or [], project, entity, description=checkpoint_card(model))
    if as_json:
        print_json({"reference": str(sent), "version": sent.alias})
        return
    say(f"{model} is {sent} now.")


def _push_to_hub(folder: Path, to: str, private: bool, as_json: bool) -> None:
    with stdout_kept_for_the_report(as_json):
        from atlas.policies.model_card import hub_card
        from atlas.registry.hub_pushing import push_to_hub
        from atlas.registry.pushing import model_in

        model = model_in(folder)
        address = push_to_hub(model, to, hub_card(model, to), private)
    if as_json:
        print_json({"reference": to, "commit": address})
        return
    say(f"{model} is {to} now: {address}")


@model_app.command("pull")
def pull(
    reference: Annotated[
        str,
        typer.Argument(metavar="REF", help="entity/project/name:alias in wandb, hf:owner/name, or a run's folder."),
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Copy it there; default: the cache's folder.")] = None,
    as_json: Json = False,
) -> None:
    """Download a model, verify it, and print where it is."""
    with stdout_kept_for_the_report(as_json):
        from atlas.registry import pull as pull_model

        found = pull_model(reference, out)
        policy = found.policy
    if as_json:
        sizes = found.files
        place = {"path": str(found.path), "policy": str(policy) if policy else None}
        print_json({"reference": found.reference, **place, "files": sizes, "bytes": sum(sizes.values())})
        return
    say(f"{found.reference} is in {found.path}")
    if policy is not None and policy != found.path:
        say(f"its policy, for `atlas eval --checkpoint`: {policy}")


@model_app.command("list")
def list_versions(
    model: Annotated[
        str | None, typer.Argument(metavar="[[E/]P/]NAME", help="One model; default: all of the project.")
    ] = None,
    project: Project = None,
    entity: Entity = None,
    as_json: Json = False,
) -> None:
    """List the models of a wandb project and their versions."""
    entity, project, name = _split(model, entity, project)
    with stdout_kept_for_the_report(as_json):
        from atlas.registry import list_models

        found = list_models(project, name, entity)
        listed: list[dict[str, Any]] = [
            {"name": one.reference.name, "versions": [_describe(version) for version in reversed(one.versions)]}
            for one in found
        ]
        owner = found[0].reference.entity if found else entity
    if as_json:
        print_json({"entity": owner, "project": project, "models": listed})
        return
    if not listed:
        say(f"The project {project} has no models.")
    for one in listed:
        rows = [
            (
                version["version"],
                ", ".join(version["aliases"]),
                "" if version["step"] is None else str(version["step"]),
                f"{version['size_mb']:,.1f}",
                version["created_at"],
                ", ".join(f"{key} {value:.4g}" for key, value in _shown(version["metrics"]).items()),
            )
            for version in one["versions"]
        ]
        columns = ("version", "aliases", "step", "MB", "created", "metrics")
        print_table(f"{owner}/{project}/{one['name']}", columns, rows)


@model_app.command("promote")
def promote(
    model: Annotated[str, typer.Argument(metavar="NAME:vN", help="A version: [[entity/]project/]name:v3, or :best.")],
    to: Annotated[str, typer.Option(metavar="REGISTRY/COLLECTION", help="For example models/cubes.")],
    alias: Aliases = None,
    project: Project = None,
    entity: Entity = None,
    as_json: Json = False,
) -> None:
    """Link a version to a registry's collection, under aliases such as prod."""
    with stdout_kept_for_the_report(as_json):
        from atlas.registry import promote as promote_version

        source = _complete(model, entity, project)
        linked = promote_version(str(source), to, alias or [])
    if as_json:
        print_json({"reference": str(source), "linked": str(linked), "aliases": alias or []})
        return
    under = f" ({', '.join(alias)})" if alias else ""
    say(f"{source} is {linked} now{under}.")


@model_app.command("prune")
def prune(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A model: [[entity/]project/]name.")],
    keep: Annotated[int, typer.Option(min=1, metavar="N", help="The number of latest versions that always stay.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, but remove nothing.")] = False,
    project: Project = None,
    entity: Entity = None,
    as_json: Json = False,
) -> None:
    """Remove a model's older versions, except best and those with an alias of yours or a link to a registry."""
    with stdout_kept_for_the_report(as_json):
        from atlas.registry import prune as prune_versions

        named = _complete(model, entity, project)
        done = prune_versions(named.path, keep, dry_run)
    if as_json:
        print_json({"model": named.path, "removed": done.removed, "kept": done.kept, "dry_run": dry_run})
        return
    verb = "would be removed" if dry_run else "removed"
    say(f"{named.path}: {verb}: {', '.join(done.removed) or 'none'}; kept: {', '.join(done.kept)}")


@model_app.command("card")
def card(
    reference: Annotated[str, typer.Argument(metavar="REF", help="A folder, or what `atlas model pull` takes.")],
    as_json: Json = False,
) -> None:
    """Print the model card of a saved policy or checkpoint."""
    with stdout_kept_for_the_report(as_json):
        from atlas.policies.model_card import checkpoint_card
        from atlas.registry import pull as pull_model

        found = pull_model(reference)
        text = found.description or checkpoint_card(found.path)
        if text is None:
            raise InputError(f"{found.reference} has no model card: it holds no README.md of a policy.")
    if as_json:
        print_json({"reference": found.reference, "card": text})
        return
    say(text, end="" if text.endswith("\n") else "\n")


# ---- small parts -----------------------------------------------------------------------------------------


def _split(model: str | None, entity: str | None, project: str | None) -> tuple[str | None, str, str | None]:
    """Entity, project and name from `[[entity/]project/]name`, with gaps filled from the options."""
    from atlas.registry.wandb_variables import project_and_entity

    own_project, own_entity = project_and_entity()
    parts = model.removeprefix("wandb:").split("/") if model else []
    if len(parts) > 3 or any(not part for part in parts) or (model and ":" in parts[-1]):
        raise InputError(f"'{model}' is not a model's name, such as entity/project/name.")
    name = parts[-1] if parts else None
    return (
        (parts[-3] if len(parts) > 2 else entity or own_entity),
        (parts[-2] if len(parts) > 1 else project or own_project),
        name,
    )


def _complete(model: str, entity: str | None, project: str | None) -> ArtifactReference:
    """A reference, with a missing project and entity filled in from the options and the key's user."""
    from atlas.registry.client import connect
    from atlas.registry.references import parse_collection
    from atlas.registry.wandb_variables import project_and_entity

    own_project, own_entity = project_and_entity()
    text = model.removeprefix("wandb:")
    slashes = text.count("/")
    if slashes == 0:
        text = f"{project or own_project}/{text}"
    if slashes < 2 and not text.startswith("wandb-registry-"):
        text = f"{entity or own_entity or connect().default_entity}/{text}"
    return parse_collection(text)


def _describe(version: Any) -> dict[str, Any]:
    metadata = dict(version.metadata)
    return {
        "version": version.version,
        "aliases": sorted(version.aliases),
        "step": metadata.get("step"),
        "size_mb": round(version.size / 1e6, 3),
        "created_at": version.created_at,
        "metrics": metadata.get("metrics") or {},
        "metadata": metadata,
    }


def _shown(metrics: dict[str, Any]) -> dict[str, float]:
    """The few metrics that fit into a line."""
    chosen = ("eval/success_rate", "val/loss", "val/pose_l2_error")
    return {key: metrics[key] for key in chosen if isinstance(metrics.get(key), int | float)}
