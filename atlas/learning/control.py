"""The control for learning by reward: the initial policy after as many gradient steps of plain imitation of the
demonstrations that it was trained on."""

from __future__ import annotations

from pathlib import Path

from atlas.config import Config
from atlas.data.formats import open_configured
from atlas.errors import InputError
from atlas.learning.imitation.plain_imitation import imitate
from atlas.policies.processor import PolicyProcessor
from atlas.registry import resolve_policy


def control_policy(
    config: Config, checkpoint: str | None, processor: PolicyProcessor, steps: int, processes: int
) -> Path | str:
    """Train the policy of a checkpoint by this many steps of imitation, with its run's settings, in <run>/control;
    return the result's place, or the reason that there is none. processes: the number that learn as one."""
    if checkpoint is None:
        return "it began with new weights, and has no demonstrations"
    if not config.learning.control:
        return "learning.control is false"
    if not steps:
        return "the policy was never updated"
    if processes > 1:
        return "several processes learned, which train no control"
    try:
        dataset, _ = open_configured(config.data)
    except InputError as error:
        return f"the demonstrations cannot be read: {error}"
    differing = [what for what, _, _ in processor.action_spec.differences(dataset.action_spec)]
    if differing or dataset.proprio_dim != processor.proprio_dim:
        return f"{config.data.label} is not what the policy was trained on"
    return imitate(config, config.run_dir / "control", resolve_policy(checkpoint), steps)
