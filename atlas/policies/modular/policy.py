"""The policy: vision, language, fusion and an action head behind one interface, with its processor inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from atlas.config import HuggingFaceLanguageConfig, ModelConfig, PretrainedVGGTConfig
from atlas.errors import InputError, first_line
from atlas.policies.model_card import model_card
from atlas.policies.modular.fusion import make_fusion
from atlas.policies.modular.head_contract import make_head
from atlas.policies.modular.language_contract import make_language
from atlas.policies.modular.pretrained_weights import FrozenWeights
from atlas.policies.modular.spatial_alignment import Alignment
from atlas.policies.modular.unused_biases import hold_key_biases
from atlas.policies.modular.vggt_vision import VGGTVisionEncoder
from atlas.policies.modular.vision_contract import make_vision
from atlas.policies.processor import PolicyProcessor, Scaler
from atlas.registry import resolve_policy
from atlas.system.documents import parse_json, read_yaml
from atlas.system.files import atomic_path, write_text
from atlas.system.tensors import save_tensors
from atlas.types import Batch, LossTerms

_FROZEN = "frozen"  # the key of model.safetensors' metadata
# Where a saved policy that includes its frozen parts has them.
FROZEN_FILES = {"vision": "vision.safetensors", "language": "language"}


class AtlasPolicy(nn.Module):
    """Images, an instruction and proprio to a chunk of H actions."""

    def __init__(
        self,
        config: ModelConfig,
        processor: PolicyProcessor,
        sources: Mapping[str, Path] | None = None,
        read_weights: bool = True,
    ) -> None:
        """sources: where to read the pretrained weights of a part ("vision", "language") in place of where the config
        says. Without `read_weights` nothing pretrained is read, for what needs shapes only. Raises InputError."""
        super().__init__()
        self.config, self.processor = config, processor
        spec, horizon = processor.action_spec, processor.action_horizon
        sources = sources or {}
        self.language = make_language(config.language, sources.get("language"), read_weights)
        self.vision = make_vision(
            config.vision,
            len(processor.cameras),
            processor.image_size,
            config.fusion.dim,
            self.language.dim,
            sources.get("vision"),
            read_weights,
        )
        self.fusion = make_fusion(config.fusion, horizon, self.vision.dim, self.language.dim, processor.proprio_dim)
        self.head = make_head(config.head, config.fusion.dim, spec, horizon)
        self.alignment = Alignment(config.alignment, self.vision.dim) if config.alignment is not None else None
        scaling, statistics = processor.scaling, processor.statistics
        self.action_scaler = Scaler(
            [s.action for s in statistics],
            scaling.action_normalization,
            keep=[spec.gripper],
            methods=[s.action_scaling for s in statistics],
        )
        self.proprio_scaler = Scaler(
            [s.proprio for s in statistics],
            scaling.proprio_normalization,
            methods=[s.proprio_scaling for s in statistics],
        )
        self._trained = {name for name, p in self.named_parameters() if p.requires_grad}
        hold_key_biases(self)

    # ---- acting and learning -----------------------------------------------------------------------------

    def forward(self, batch: Batch) -> LossTerms:
        """The losses of a batch with actions; images float in [0, 1] or uint8, or a frozen encoder's features."""
        return self._losses(batch, *self._look(batch))

    @torch.no_grad()
    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions float32 [B, H, A] in the ActionSpec's units, gripper in [-1, 1].

        A generative head draws its noise from `generator`, else from the batch's keys, else from torch's own generator.
        """
        return self._actions(batch, self._look(batch)[1], generator)

    @torch.no_grad()
    def losses_and_sample(self, batch: Batch) -> tuple[LossTerms, torch.Tensor]:
        """What `forward` and `sample` give, for one look at the images."""
        seen, fused = self._look(batch)
        return self._losses(batch, seen, fused), self._actions(batch, fused, None)

    def _look(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Vision tokens [B, N, D], and one fused token an action, [B, H, dim]."""
        language = self.language(batch.instruction)
        seen = batch.features if batch.features is not None else self.vision(batch.unit_images(), language)
        proprio = self.proprio_scaler.normalize(batch.proprio, batch.source)
        return seen, self.fusion(seen, language, proprio)

    def _losses(self, batch: Batch, seen: torch.Tensor, fused: torch.Tensor) -> LossTerms:
        assert batch.actions is not None and batch.action_is_pad is not None
        actions = self.action_scaler.normalize(batch.actions, batch.source)
        terms: LossTerms = self.head(fused, actions, batch.action_is_pad, batch.key)
        if self.alignment is not None and self.alignment.teacher is not None:
            assert isinstance(self.vision, VGGTVisionEncoder)
            aligned = self.alignment(self.vision.patch_grid(seen), batch.unit_images())
            terms.loss = terms.loss + self.alignment.weight * aligned
            terms.extra["alignment_loss"] = aligned
        return terms

    def _actions(self, batch: Batch, fused: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return self.action_scaler.denormalize(self.head.sample(fused, batch.key, generator), batch.source)

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks that are trained, in the order in which `forward` first calls them.

        Each is called as a module, takes and gives tensors, and is not part of another. Blocks without a trainable
        parameter are left out: nothing goes back through them.
        """
        parts = (self.language, self.vision, self.fusion, self.head)
        blocks = [block for part in parts for block in part.blocks]
        return [block for block in blocks if any(p.requires_grad for p in block.parameters())]

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Of the terms that `forward` returns."""
        taught = self.alignment is not None and self.alignment.teacher is not None
        return ("loss", "pose_loss", "gripper_loss", *(("alignment_loss",) if taught else ()))

    def learning_rate_factor(self, name: str) -> float:
        """Of the training's learning rate, for a parameter by its name: pretrained weights may learn more slowly."""
        part = name.split(".", 1)[0]
        section = {"vision": self.config.vision, "language": self.config.language}.get(part)
        if isinstance(section, PretrainedVGGTConfig | HuggingFaceLanguageConfig) and not section.freeze:
            return section.learning_rate_factor
        return 1.0

    # ---- saving and loading ------------------------------------------------------------------------------

    @property
    def frozen(self) -> dict[str, FrozenWeights]:
        """The parts whose weights are pretrained and frozen: named in what is saved, and not part of it."""
        parts = {"vision": getattr(self.vision, "frozen", None), "language": self.language.frozen}
        return {name: weights for name, weights in parts.items() if weights is not None}

    def own_state_dict(self) -> dict[str, torch.Tensor]:
        """The state dict without frozen pretrained weights and without the alignment's teacher."""
        left_out = (*(f"{part}." for part in self.frozen), "alignment.teacher.")
        return {k: v for k, v in self.state_dict().items() if k in self._trained or not k.startswith(left_out)}

    def load_own_state_dict(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take what `own_state_dict` gives; the names must be the same."""
        assert weights.keys() == self.own_state_dict().keys()
        self.load_state_dict(weights, strict=False)

    def save_pretrained(
        self, directory: str | Path, full: bool = False, weights: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Write model.safetensors, config.yaml, processor.json and README.md, each file atomically.

        Frozen pretrained parts are named with their hashes only, unless `full`: then copies of them lie beside.
        weights: what to write in place of `own_state_dict()`, such as a copy of what that once was.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        frozen = {part: asdict(weights) for part, weights in self.frozen.items()}
        own = self.own_state_dict() if weights is None else weights
        with atomic_path(directory / "model.safetensors") as partial:
            save_tensors(partial, own, {"format": "pt", _FROZEN: json.dumps(frozen, sort_keys=True)})
        write_text(directory / "config.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        self.processor.save(directory / "processor.json")
        write_text(directory / "README.md", model_card(self))
        if full:
            for part in frozen:
                getattr(self, part).save_source(directory / FROZEN_FILES[part])

    @classmethod
    def from_pretrained(cls, reference: str | Path) -> AtlasPolicy:
        """Load a saved policy, strictly, in eval mode on the CPU; `reference` as in `atlas.registry`.

        Frozen parts are read from the policy's folder where it has copies, else from where its config says; their
        hashes must be those that it was saved with. Raises InputError that names the file for one that is missing,
        damaged or does not fit its config.
        """
        directory = resolve_policy(reference)
        config_file = directory / "config.yaml"
        try:
            config = ModelConfig.model_validate(read_yaml(config_file))
        except (OSError, ValueError) as error:
            raise InputError(f"{config_file} is not the config of a policy: {error}") from None
        sources = {part: directory / name for part, name in FROZEN_FILES.items() if (directory / name).exists()}
        processor = PolicyProcessor.load(directory / "processor.json")
        try:
            policy = cls(config, processor, sources)
        except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError, AssertionError) as error:
            raise InputError(f"No policy can be made of {config_file} ({first_line(error)}).") from error
        policy.load_weights(directory / "model.safetensors")
        return policy.eval()

    def load_weights(self, path: Path) -> None:
        """Load a safetensors file strictly. Raises InputError that names the first tensors that do not fit, or the
        frozen part that is another one than the weights were trained with."""
        try:
            with safe_open(path, framework="pt") as file:
                named = parse_json((file.metadata() or {}).get(_FROZEN, "{}"))
            frozen = {part: FrozenWeights(**values) for part, values in named.items()}
            weights = load_file(path)
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(f"{path} cannot be read as safetensors; it may be truncated ({error}).") from None
        self._check_frozen(path, frozen)
        own = self.own_state_dict()
        problems = [f"'{k}' is missing" for k in own if k not in weights]
        problems += [f"'{k}' is not part of this policy" for k in weights if k not in own]
        problems += [
            f"'{k}' has shape {list(v.shape)}, expected {list(own[k].shape)}"
            for k, v in weights.items()
            if k in own and own[k].shape != v.shape
        ]
        problems += [
            f"'{k}' is {v.dtype}, expected {own[k].dtype}"
            for k, v in weights.items()
            if k in own and (own[k].is_floating_point() != v.is_floating_point() or v.is_complex())
        ]
        if not problems:
            problems = [f"'{k}' holds values that are not finite" for k, v in weights.items() if not _is_finite(v)]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise InputError(f"{path} does not fit the policy's config: {'; '.join(problems[:3])}{more}.")
        self.load_own_state_dict(weights)

    def _check_frozen(self, path: Path, saved: Mapping[str, FrozenWeights]) -> None:
        for part, now in self.frozen.items():
            was = saved.get(part)
            if was is None:
                raise InputError(f"{path} was saved with a {part} part of its own, and its config names a frozen one.")
            if was.sha256 != now.sha256:
                raise InputError(
                    f"{path} was trained with other frozen {part} weights: '{was.reference}' then had the hash "
                    f"{was.sha256[:12]}, and '{now.reference}' has {now.sha256[:12]}. Give it the weights of then."
                )


def _is_finite(values: torch.Tensor) -> bool:
    """Also of types in which torch does not compute, such as 8-bit floats."""
    return bool((values.float() if values.is_floating_point() else values).isfinite().all())
