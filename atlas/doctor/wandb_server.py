"""Checks whether Weights & Biases is installed, has a key and can be reached. Training never needs it."""

from __future__ import annotations

from atlas.config import WandbConfig
from atlas.doctor.child import Trial, try_module
from atlas.doctor.verdict import Finding
from atlas.errors import InputError

_SECONDS = 45.0


def check_wandb() -> Finding:
    """Whether runs can be logged to Weights & Biases from here."""
    from atlas.registry.wandb_variables import effective_mode

    try:
        mode = effective_mode(WandbConfig())
    except InputError as error:
        return Finding("wandb", "warning", str(error), "Runs with wandb are refused until it is corrected or unset.")
    # wandb does not say in offline mode whether there is a key.
    environment = {"WANDB_SILENT": "true", "WANDB_MODE": None}
    return judge_wandb(try_module("atlas.doctor.probes", ["wandb"], _SECONDS, environment), mode)


def judge_wandb(trial: Trial, mode: str) -> Finding:
    """Judge the trial. Nothing here is a problem: TensorBoard's files are always written, and wandb can be offline."""
    if not trial.worked:
        fix = "TensorBoard works without it. Install it again: pip install --force-reinstall 'atlas-vla[wandb]'"
        return Finding("wandb", "warning", f"wandb does not work: {trial.why}", fix, {"error": trial.why})
    found = {**trial.answer, "mode": mode}
    if found["version"] is None:
        summary = "wandb is not installed; TensorBoard works without it"
        return Finding("wandb", "warning", summary, "To use it: pip install 'atlas-vla[wandb]'", found)
    server, error = found["server"], found["error"]
    key = "there is a key" if found["key"] else "there is no key"
    reach = f"{server} answers" if error is None else f"{server} does not answer ({error})"
    summary = f"{found['version']}, mode {mode}; {key}; {reach}"
    if mode != "online":
        return Finding("wandb", "ok", summary, None, found)
    if error is not None:
        fix = (
            "Runs are logged offline; `wandb sync` sends them later. Is there a network? (Name a proxy in https_proxy, "
            "another server in WANDB_BASE_URL; with WANDB_MODE=offline wandb does not try to connect.)"
        )
        return Finding("wandb", "warning", summary, fix, found)
    if not found["key"]:
        return Finding("wandb", "warning", summary, "Runs are logged offline until you run `wandb login` once.", found)
    return Finding("wandb", "ok", summary, None, found)
