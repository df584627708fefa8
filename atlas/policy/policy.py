"""The policy: vision, language, fusion and an action head behind one interface, with its processor inside."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from atlas.config import ModelConfig
from atlas.errors import InputError
from atlas.files import atomic_path, write_text
from atlas.policy.card import model_card
from atlas.policy.fusion import QueryFusion
from atlas.policy.language import make_language
from atlas.policy.processor import PolicyProcessor, Scaler
from atlas.policy.regression import RegressionHead
from atlas.policy.vision import make_vision
from atlas.registry import resolve_policy
from atlas.types import Batch, LossTerms


class AtlasPolicy(nn.Module):
    """Images, an instruction and proprio to a chunk of H actions."""

    def __init__(self, config: ModelConfig, processor: PolicyProcessor) -> None:
        super().__init__()
        self.config, self.processor = config, processor
        spec = processor.action_spec
        self.language = make_language(config.language)
        self.vision = make_vision(
            config.vision, len(processor.cameras), processor.image_size, config.fusion.dim, self.language.dim
        )
        self.fusion = QueryFusion(
            config.fusion, processor.action_horizon, self.vision.dim, self.language.dim, processor.proprio_dim
        )
        self.head = RegressionHead(config.head, config.fusion.dim, spec)
        scaling, statistics = processor.scaling, processor.statistics
        self.action_scaler = Scaler([s.action for s in statistics], scaling.action_normalization, keep=[spec.gripper])
        self.proprio_scaler = Scaler([s.proprio for s in statistics], scaling.proprio_normalization)

    def forward(self, batch: Batch) -> LossTerms:
        """The losses of a batch with actions; images float in [0, 1] or uint8."""
        assert batch.actions is not None and batch.action_is_pad is not None
        actions = self.action_scaler.normalize(batch.actions, batch.source)
        loss: LossTerms = self.head(self._fuse(batch), actions, batch.action_is_pad)
        return loss

    @torch.no_grad()
    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions float32 [B, H, A] in the ActionSpec's units, gripper in [-1, 1]."""
        actions = self.head.sample(self._fuse(batch), generator)
        return self.action_scaler.denormalize(actions, batch.source)

    def _fuse(self, batch: Batch) -> torch.Tensor:
        images = batch.images if batch.images.is_floating_point() else batch.images.float() / 255  # [B, V, 3, H, W]
        language = self.language(batch.instruction)
        proprio = self.proprio_scaler.normalize(batch.proprio, batch.source)
        fused: torch.Tensor = self.fusion(self.vision(images, language), language, proprio)
        return fused

    def save_pretrained(self, directory: Path) -> None:
        """Write model.safetensors, config.yaml, processor.json and README.md, each file atomically."""
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_path(directory / "model.safetensors") as partial:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, partial)
        write_text(directory / "config.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        self.processor.save(directory / "processor.json")
        write_text(directory / "README.md", model_card(self))

    @classmethod
    def from_pretrained(cls, reference: str | Path) -> AtlasPolicy:
        """Load a saved policy, strictly, in eval mode on the CPU; `reference` as in `atlas.registry`.

        Raises InputError that names the file for one that is missing, damaged or does not fit its config.
        """
        directory = resolve_policy(reference)
        config_file = directory / "config.yaml"
        try:
            config = ModelConfig.model_validate(yaml.safe_load(config_file.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError) as error:
            raise InputError(f"{config_file} is not the config of a policy: {error}") from None
        policy = cls(config, PolicyProcessor.load(directory / "processor.json"))
        policy.load_weights(directory / "model.safetensors")
        return policy.eval()

    def load_weights(self, path: Path) -> None:
        """Load a safetensors file strictly. Raises InputError that names the first tensors that do not fit."""
        try:
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read as safetensors; it may be truncated ({error}).") from None
        own = self.state_dict()
        problems = [f"'{k}' is missing" for k in own if k not in weights]
        problems += [f"'{k}' is not part of this policy" for k in weights if k not in own]
        problems += [
            f"'{k}' has shape {list(v.shape)}, expected {list(own[k].shape)}"
            for k, v in weights.items()
            if k in own and own[k].shape != v.shape
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise InputError(f"{path} does not fit the policy's config: {'; '.join(problems[:3])}{more}.")
        self.load_state_dict(weights)
