"""Sending a saved model to wandb without a training run."""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from atlas.errors import InputError
from atlas.registry.client import TIMEOUT_SECONDS, connect, end_service, explained, import_wandb
from atlas.registry.package import Package, read_package, send
from atlas.registry.references import ArtifactReference, check_alias, safe_name
from atlas.registry.wandb_variables import project_and_entity
from atlas.system.file_store import artifact_files, card_of, describe_files, total_bytes
from atlas.system.files import finite, follow

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 3600
_SECONDS_BETWEEN_LINES = 15.0


def push(
    path: str | Path,
    name: str | None = None,
    aliases: Sequence[str] = (),
    project: str | None = None,
    entity: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    description: str | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> ArtifactReference:
    """Upload a checkpoint, a saved policy, or a model that training could not send; returns the new version.

    path: of a run, its best checkpoint is sent. By default a checkpoint has its run's name and a folder its own name;
    the facts in its files are its metadata, and its model card is the description. It returns when wandb has confirmed
    the upload. Raises InputError.
    """
    source = model_in(path)
    for alias in aliases:
        check_alias(alias)
    wandb = import_wandb()
    package = _package(source, name, aliases, metadata, description)
    connect()  # reports errors within seconds, while `wandb.init` takes a minute and a half
    size = total_bytes(package.files) / 1e6
    title = f"Uploading {package.name} ({len(package.files)} files, {size:,.1f} MB)"
    own_project, own_entity = project_and_entity()
    with (
        tempfile.TemporaryDirectory(prefix="atlas-push-", ignore_cleanup_errors=True) as scratch,
        explained(f"{source} cannot be uploaded"),
        _still_at_it(title),
    ):
        return _upload(wandb, package, Path(scratch), project or own_project, entity or own_entity, timeout_seconds)


def model_in(path: str | Path) -> Path:
    """Return the folder that is pushed for a path: for a run its best checkpoint, or otherwise its latest; else the
    path itself."""
    root = follow(Path(path).expanduser()).resolve()
    links = (follow(root / "checkpoints" / name) for name in ("best", "latest"))
    return next((link.resolve() for link in links if link.exists()), root)


def _package(
    source: Path,
    name: str | None,
    aliases: Sequence[str],
    metadata: Mapping[str, Any] | None,
    description: str | None,
) -> Package:
    staged = read_package(source)
    if staged is not None:  # a model that training could not send carries all of its facts
        return replace(
            staged,
            name=safe_name(name or staged.name),
            aliases=[*staged.aliases, *aliases],
            metadata={**staged.metadata, **finite(metadata or {})},
            description=description or staged.description,
        )
    facts = {**describe_files(source), **(metadata or {})}
    chosen = safe_name(name or str(facts.get("run_name") or source.name))
    steps = [f"step-{facts['step']}"] if "step" in facts else []
    card = description or (card_of(source) if source.is_dir() else None)
    return Package(chosen, [*steps, *aliases], finite(facts), card, artifact_files(source), source)


def _upload(
    wandb: Any, package: Package, scratch: Path, project: str, entity: str | None, timeout_seconds: float
) -> ArtifactReference:
    settings = wandb.Settings(silent=True, init_timeout=TIMEOUT_SECONDS, finish_timeout=TIMEOUT_SECONDS)
    run = wandb.init(
        project=project,
        entity=entity,
        job_type="upload-model",
        name=f"upload {package.name}",
        dir=str(scratch),
        mode="online",
        settings=settings,
    )
    exit_code = 1
    try:
        try:
            artifact = send(wandb, run, package, timeout_seconds)
        except ValueError as error:
            raise InputError(f"wandb did not accept {package.name}: {str(error).strip()}") from error
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)
        if exit_code:
            end_service(wandb)
    return ArtifactReference(artifact.entity, artifact.project, package.name, artifact.version)


@contextmanager
def _still_at_it(title: str) -> Iterator[None]:
    """Print on stderr what begins, and now and then how long it has taken: wandb does not report progress."""
    done, start = threading.Event(), time.monotonic()
    print(title, file=sys.stderr, flush=True)

    def tell() -> None:
        while not done.wait(_SECONDS_BETWEEN_LINES):
            print(f"{title}: {time.monotonic() - start:.0f} s so far", file=sys.stderr, flush=True)

    threading.Thread(target=tell, name="atlas-push", daemon=True).start()
    try:
        yield
    finally:
        done.set()
