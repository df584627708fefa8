"""Exports policies to other programs: published ones back to LeRobot, and others to a single file for robots."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from atlas.errors import InputError, did_you_mean
from atlas.policies.adapters import has_adapters
from atlas.policies.base import load_policy
from atlas.policies.graph_export import FILES, Exported, export_graph
from atlas.registry import resolve_policy
from atlas.system.file_store import describe_files
from atlas.system.files import partial_folder

FORMS = ("lerobot", *FILES)


@runtime_checkable
class GoesToLeRobot(Protocol):
    """A policy of a type that LeRobot has too."""

    def export_lerobot(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write a folder that LeRobot loads. facts: about the training, for the model card."""


def export_policy(
    reference: str | Path,
    form: str,
    out: Path,
    merge_lora: bool = False,
    instructions: Sequence[str] = (),
    env: str | None = None,
) -> Exported:
    """Write a policy in another program's form into a new or empty folder, completely or not at all.

    reference: as in `load_policy`. form: one of FORMS. merge_lora: for LeRobot, merge adapters into the weights that
    they adapt; needed for a policy with adapters. instructions, env: see `export_graph`. Raises InputError for an
    unknown form, an option of another form, a policy that the program does not have, and a folder that is not empty.
    """
    if form not in FORMS:
        raise InputError(f"--to {form} is not known.{did_you_mean(form, FORMS)} Known: {', '.join(FORMS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not empty; choose another folder, or remove it.")
    if form in FILES:
        if merge_lora:
            raise InputError(f"--merge-lora is for --to lerobot; {form} keeps the adapters as they are.")
        return export_graph(reference, form, out, instructions, env)
    if instructions or env is not None:
        raise InputError(f"--instruction and --env are for --to {' and '.join(FILES)}, not for {form}.")
    return Exported(_to_lerobot(reference, out, merge_lora))


def _to_lerobot(reference: str | Path, out: Path, merge_lora: bool) -> Path:
    policy = load_policy(reference)
    if not isinstance(policy, GoesToLeRobot):
        raise InputError(
            f"{reference} is a policy of the type '{policy.config.type}', which LeRobot does not have; only types that "
            "come from LeRobot can be exported to it."
        )
    if has_adapters(policy) and not merge_lora:
        raise InputError(f"{reference} has adapters (LoRA), which LeRobot's form cannot hold; add --merge-lora.")
    if merge_lora and not has_adapters(policy):
        raise InputError(f"--merge-lora: {reference} has no adapters.")
    with partial_folder(out) as partial:
        policy.export_lerobot(partial, _facts(resolve_policy(reference)))
        os.replace(partial, out)
    return out


def _facts(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint says about the training of the policy in it; nothing if the policy is in none."""
    return describe_files(folder.parent) if (folder.parent / "trainer").is_dir() else {}
