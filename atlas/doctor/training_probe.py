"""Training: two steps of a tiny job, from data on disk to a checkpoint that loads."""

from __future__ import annotations

from atlas.doctor.child import try_module
from atlas.doctor.verdict import Finding

_SECONDS = 300.0


def check_training() -> Finding:
    """Train, validate, write a checkpoint and read it again, in a temporary folder; on a GPU where there is one."""
    tried = try_module("atlas.doctor.tiny_job", [], _SECONDS, {"WANDB_MODE": "disabled"})
    if tried.worked:
        found = tried.answer
        seen = f"{found['steps']} steps on {found['device']}, loss {found['loss']:.3f}, and a checkpoint that loads"
        return Finding("training", "ok", seen, None, found)
    fix = "What is wrong above comes first. If nothing is, this is a bug: report it with `atlas doctor --json`."
    return Finding("training", "problem", f"a tiny job failed: {tried.why}", fix, {"error": tried.why})
