"""Policies of the golden folders, and folders that differ from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from atlas.config.model_section import MODEL
from atlas.policies.base import load_policy
from atlas.policies.pi.pi_policy import PiPolicy
from atlas.types import Batch, Observation
from tests.policies.golden_pi import FOLDER, golden, inputs

CAMERA = "observation.images."


def load(folder: Path) -> PiPolicy:
    policy = load_policy(folder)
    assert isinstance(policy, PiPolicy)
    return policy


def build(kind: str, cameras: list[str] | None = None, folder: Path | None = None, **settings: Any) -> PiPolicy:
    """A policy that begins with a folder's weights (None: the golden ones), for the golden data."""
    processor = load(FOLDER / kind).processor
    if cameras is not None:
        processor = replace(processor, cameras=tuple(cameras))
    section = MODEL.validate({"type": kind, "pretrained": str(folder or FOLDER / kind), **settings})
    policy = section.build(processor)
    assert isinstance(policy, PiPolicy)
    return policy


def cameras_of(kind: str, case: str) -> list[str]:
    return [name.removeprefix(CAMERA) for name in inputs(kind)["cases"][case]["cameras_given"]]


def batch_of(policy: PiPolicy, kind: str, padding: bool = False) -> Batch:
    """The golden samples, with their actions; padding: as it is there, or none."""
    numbers, told = golden(kind).inputs, inputs(kind)
    names = {camera.removeprefix(CAMERA): name for camera, name in told["cameras"].items()}
    observations = [
        Observation(
            images={camera: numbers[names[camera]][n].numpy() for camera in policy.processor.cameras},
            proprio=numbers["state"][n].numpy(),
            instruction=task,
        )
        for n, task in enumerate(told["tasks"])
    ]
    is_pad = numbers["action_is_pad"]
    return replace(
        policy.processor.batch(observations),
        actions=numbers["action"],
        action_is_pad=is_pad if padding else torch.zeros_like(is_pad),
    )


def changed(
    kind: str,
    to: Path,
    weights: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """A copy of a golden folder with other weights, or other values in config.json."""
    shutil.copytree(FOLDER / kind, to, ignore=shutil.ignore_patterns("golden*", "inputs*", "v044", "*shapes*"))
    if weights is not None:
        save_file(weights(load_file(to / "model.safetensors")), to / "model.safetensors")
    if config is not None:
        file = to / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return to
