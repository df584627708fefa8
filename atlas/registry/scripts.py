"""Two lines for your own training script: models of the active wandb run, verified.

registry.upload_model(model.state_dict(), step)
registry.save_and_upload_best(model, step, {"val/loss": loss}, "val/loss", best)
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.config.tracking_sections import rises
from atlas.errors import InputError, first_line
from atlas.registry.artifact_cache import place
from atlas.registry.client import import_wandb
from atlas.registry.download import fetch_artifact
from atlas.registry.package import Package, send, send_in_order, stage, waiting_in
from atlas.registry.references import ArtifactReference, check_alias, parse_artifact, safe_name
from atlas.system.file_store import card_of, describe_files

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 600.0


def upload_model(
    state_dict_or_dir: Mapping[str, Any] | str | Path,
    step: int,
    alias: str = "latest",
    *,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> bool:
    """Keep a model as the next version of an artifact of the active wandb run; True if it has arrived.

    state_dict_or_dir: a state dict (of tensors: it becomes a model.safetensors; of anything else: a model.pt that
    `torch.load` reads), a folder such as `policy.save_pretrained` writes, or a file. It may change afterwards.
    alias: in addition to `latest` and `step-N`. name: of the artifact; default: the run's. timeout_seconds: how long to
    wait at most until wandb confirms the upload.

    A model that does not arrive is reported, kept in the run's folder and sent again with the next call; since that is
    no reason to stop training, nothing is raised. An offline run keeps it for `wandb sync`. Raises InputError without
    an active run, or if there is no such folder.
    """
    run = _active_run()
    if alias != "latest":
        check_alias(alias)
    if run.disabled:
        return False
    own_folder = Path(run.dir).parent / "models"
    artifact_name = safe_name(name or run.name or run.id)
    aliases = list(dict.fromkeys([alias, f"step-{int(step)}"]))
    facts = {**dict(metadata or {}), "step": int(step)}
    if isinstance(state_dict_or_dir, str | Path):
        source = Path(state_dict_or_dir)
        facts = {**describe_files(source), **facts}
        package = stage(source, own_folder, artifact_name, aliases, facts, card_of(source), copy=True)
    else:
        saved = _save(state_dict_or_dir, own_folder / f".step-{int(step)}")
        try:
            facts = {**describe_files(saved), **facts}
            package = stage(saved, own_folder, artifact_name, aliases, facts, None)
        finally:
            shutil.rmtree(saved, ignore_errors=True)
    return _send(run, package, timeout_seconds)


def save_and_upload_best(
    model: Any,
    step: int,
    eval_metrics: Mapping[str, float],
    threshold_metric: str,
    best_value_tracker: MutableMapping[str, float],
    *,
    mode: str = "auto",
    name: str | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> bool:
    """Upload a model as `best` if it is the best so far; True if it was, and has arrived.

    model: a torch module, a policy, or what `upload_model` takes. threshold_metric: the name in eval_metrics that
    decides. best_value_tracker: `{}` at the start, kept by the caller; it will hold the best value under the metric's
    name. mode: 'max' or 'min'; 'auto': more is better if the name contains success, accuracy or reward, otherwise less
    is. Raises InputError without an active run, and for a metric that is missing or not a number.
    """
    if mode not in ("auto", "max", "min"):
        raise InputError(f"mode is '{mode}'; it should be auto, max or min.")
    if threshold_metric not in eval_metrics:
        known = ", ".join(sorted(eval_metrics)) or "none"
        raise InputError(f"eval_metrics has no '{threshold_metric}'; it has {known}.")
    _active_run()
    numbers = {key: value for key, item in eval_metrics.items() if (value := _number(item)) is not None}
    value = numbers.get(threshold_metric)
    if value is None:
        raise InputError(f"'{threshold_metric}' should be a number, but is {eval_metrics[threshold_metric]!r}.")
    if value != value:  # NaN is never the best
        return False
    rising = mode == "max" or (mode == "auto" and rises(threshold_metric))
    best = best_value_tracker.get(threshold_metric)
    if best is not None and not (value > best if rising else value < best):
        return False
    sent = _upload(model, step, name, {"metrics": numbers}, timeout_seconds)
    best_value_tracker[threshold_metric] = value
    return sent


def download_model(reference: str, root: str | Path | None = None) -> Path:
    """The folder of a model, verified by digest: in the cache, or copied to `root`.

    reference: `wandb:entity/project/name:alias`, or `name:alias` in the active run's project; the run records that it
    has used the model. Raises InputError if it cannot be downloaded.
    """
    wandb = import_wandb()
    run = wandb.run
    if "/" not in reference:
        run = _active_run()
        name, _, alias = reference.partition(":")
        reference = str(ArtifactReference(run.entity, run.project, name, alias or None))
    parsed = parse_artifact(reference)
    found = fetch_artifact(parsed)
    if run is not None and not run.offline and not run.disabled:
        try:
            run.use_artifact(parsed.path)
        except Exception as error:  # only the project's graph lacks this note; the model is here
            logger.warning("wandb did not note down that this run uses %s: %s.", parsed, first_line(error))
    return found.path if root is None else place(found.path, Path(root))


# ---- small parts -----------------------------------------------------------------------------------------


def _active_run() -> Any:
    """The run that `wandb.init` has started. Raises InputError if there is none."""
    run = import_wandb().run
    if run is None:
        raise InputError("There is no active wandb run: call wandb.init(project=…) first, or use `atlas model push`.")
    return run


def _upload(model: Any, step: int, name: str | None, metadata: Mapping[str, Any], timeout_seconds: float) -> bool:
    given: dict[str, Any] = {"name": name, "metadata": metadata, "timeout_seconds": timeout_seconds}
    if hasattr(model, "save_pretrained"):
        folder = Path(_active_run().dir).parent / "models" / f".policy-{int(step)}"
        try:
            model.save_pretrained(folder)
            return upload_model(folder, step, "best", **given)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    content = model.state_dict() if hasattr(model, "state_dict") else model
    return upload_model(content, step, "best", **given)


def _send(run: Any, package: Package, timeout_seconds: float) -> bool:
    """Send what failed before and then this one; True if this one has arrived, or is kept for `wandb sync`."""
    wandb = import_wandb()
    arrived: list[Path] = []

    def deliver(waiting: Package) -> None:
        send(wandb, run, waiting, timeout_seconds)
        arrived.append(waiting.folder)
        if not run.offline:
            shutil.rmtree(waiting.folder, ignore_errors=True)

    def failed(waiting: Package, error: Exception) -> None:
        logger.warning(
            "wandb did not accept the model %s (%s): %s. It is in %s, and is sent again with the next one.",
            waiting.name,
            ", ".join(waiting.aliases),
            first_line(error),
            waiting.folder,
        )

    send_in_order([package] if run.offline else waiting_in(package.folder.parent), deliver, failed)
    return package.folder in arrived


def _save(state: Mapping[str, Any], folder: Path) -> Path:
    """Write a state dict into a new folder."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if state and all(isinstance(value, torch.Tensor) for value in state.values()):
        save_file({key: _own(value) for key, value in state.items()}, folder / "model.safetensors")
    else:
        torch.save(dict(state), folder / "model.pt")
    return folder


def _number(value: Any) -> float | None:
    """A number, or a tensor or array of one, as a float; None for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _own(value: torch.Tensor) -> torch.Tensor:
    """A contiguous copy with its own memory: the file format supports neither views nor tensors that share memory."""
    return value.detach().cpu().contiguous().clone()
