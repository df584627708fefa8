"""Published policies beside golden values of LeRobot: the inputs, and how far what is measured is from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from atlas.policies.processor import PolicyProcessor
from atlas.types import Batch, Observation

FIXTURES = Path(__file__).parents[1] / "fixtures"
Values = dict[str, torch.Tensor]


class Golden:
    """One set: its folder is LeRobot's, with inputs.* and golden.safetensors beside."""

    def __init__(self, name: str) -> None:
        self.folder = FIXTURES / name
        self.inputs: Values = load_file(self.folder / "inputs.safetensors")
        self.values: Values = load_file(self.folder / "golden.safetensors")
        self.described: dict[str, Any] = json.loads((self.folder / "inputs.json").read_text())
        self.facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text())

    def cameras(self, case: str) -> tuple[str, ...]:
        """Given in a case, by Atlas's names."""
        return tuple(c.removeprefix("observation.images.") for c in self.described["cases"][case]["cameras_given"])

    def processor(self, whole: PolicyProcessor, case: str) -> PolicyProcessor:
        """The processor of a whole folder with the cameras of a case."""
        return replace(whole, cameras=self.cameras(case))

    def batch(self, processor: PolicyProcessor) -> Batch:
        """The samples, through the processor as a rollout's observations go, with the actions of training."""
        inputs = self.inputs
        observations = [
            Observation(
                {camera: inputs[f"image.{camera}"][i].numpy() for camera in processor.cameras},
                inputs["state"][i].numpy(),
                task,
            )
            for i, task in enumerate(self.described["tasks"])
        ]
        actions, is_pad = inputs["action"], inputs["action_is_pad"]
        return replace(processor.batch(observations), actions=actions, action_is_pad=is_pad)

    def differences(self, case: str, measured: Values) -> dict[str, float]:
        """Of each value the largest absolute difference; rows of padded tokens of the prefix mean nothing."""
        found = {}
        for name, value in measured.items():
            golden = self.values[f"{case}.{name}"]
            rows = min(len(golden), len(value)) if golden.ndim else None
            mine, theirs = (v if rows is None else v[:rows] for v in (value, golden))
            if name.split(".")[-1].startswith("prefix") and mine.dtype.is_floating_point and "mask" not in name:
                valid = self.values[f"{case}.prefix_pad_masks"][: len(mine)]
                mine, theirs = mine[valid], theirs[valid]
            assert mine.shape == theirs.shape, (name, mine.shape, theirs.shape)
            found[name] = float((mine.double() - theirs.double()).abs().max()) if mine.numel() else 0.0
        return found


def limit(name: str) -> float:
    """What the golden sets' descriptions suggest for another float32 implementation."""
    last = name.removeprefix("sample.").removeprefix("rtc.").split(".")[0]
    if name.startswith(("sample.v", "sample.x", "sample.actions", "rtc.")):
        return 2e-4
    exact = ("tokens", "token_mask", "image_mask", "position_ids", "attention_mask", "timestep")
    if last in exact or "mask" in name or "position_ids" in name:
        return 0.0
    small = {"image": 1e-6, "loss": 2e-5, "loss_per_sample": 2e-5, "loss_elements": 5e-4, "time_emb": 1e-9}
    if last in ("vision_out", "image_emb", "prefix_embs", "state_normalized", "action_normalized", "suffix_embs"):
        return 2e-5
    return small.get(last, 1e-4)


def wrong(differences: dict[str, float]) -> dict[str, float]:
    """Those beyond their limits, the first one first."""
    return {name: found for name, found in differences.items() if not found <= limit(name)}
