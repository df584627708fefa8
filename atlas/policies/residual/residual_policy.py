"""A frozen policy, and a small network that corrects its actions.

The network sees the policy's features of a sample, the proprio and the policy's chunk. Its last layer is initialised
with zeros, so that it corrects nothing at first, and it never corrects by more than `scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from atlas.errors import InputError
from atlas.policies.action_distribution import CorrectedActions, GaussianActions
from atlas.policies.base import GivesFeatures, Policy
from atlas.policies.modular.action_heads.action_parts import ActionParts
from atlas.policies.modular.parts import GaussianHeadConfig
from atlas.policies.pretrained_weights import FrozenWeights
from atlas.policies.processor import PolicyProcessor
from atlas.policies.residual.residual_section import ResidualConfig
from atlas.types import Batch, LossTerms

_LOG_STD = -1.0  # of the first random corrections, whose largest size is 1
_LOWEST, _HIGHEST = -5.0, 0.5


class ResidualPolicy(Policy):
    """One correction, of A numbers, for all executed actions of a chunk."""

    config: ResidualConfig

    def __init__(self, config: ResidualConfig, processor: PolicyProcessor, base: Policy) -> None:
        """Raises InputError for a base that gives no features, and for settings that do not fit it."""
        super().__init__(config, processor)
        if not isinstance(base, GivesFeatures):
            raise InputError(
                f"A policy of the type {config.base.type} cannot be corrected: it gives no features. "
                "The type modular does."
            )
        if processor.history.steps > 1 or processor.relative is not None:
            raise InputError("A policy with data.history or relative actions cannot be corrected by a residual.")
        if config.execute > processor.action_horizon:
            raise InputError(
                f"model.execute is {config.execute}, but the policy's chunks have {processor.action_horizon} actions."
            )
        self.base = base.requires_grad_(False)
        self._feature_dim, self._dim = base.feature_dim, processor.action_spec.dim
        self.action_scaler, self.proprio_scaler = processor.action_scaler(), processor.proprio_scaler()
        self.parts_of_actions = ActionParts(processor.action_spec)
        sizes = [base.feature_dim + processor.proprio_dim + config.execute * self._dim, *[config.width] * config.layers]
        inner = [module for a, b in pairwise(sizes) for module in (nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU())]
        last = nn.Linear(sizes[-1], 2 * self._dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(*inner, last)

    def train(self, mode: bool = True) -> ResidualPolicy:
        super().train(mode)
        self.base.eval()
        return self

    # ---- for learning by reward; see `Corrects` ----------------------------------------------------------------

    @property
    def feature_dim(self) -> int:
        return self._feature_dim

    @property
    def execute(self) -> int:
        return self.config.execute

    def corrected_part(self) -> nn.Module:
        return self.correction

    @torch.no_grad()
    def seen_by_base(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        return self._look(batch, generator)[0]

    def corrected(self, seen: Mapping[str, torch.Tensor]) -> CorrectedActions:
        inputs = [seen["features"], seen["scaled_proprio"], seen["base"].flatten(1)]
        mean, log_std = self.correction(torch.cat(inputs, 1).float()).unflatten(1, (1, 2 * self._dim)).chunk(2, -1)
        log_std = (log_std + _LOG_STD).clamp(_LOWEST, _HIGHEST)
        return CorrectedActions(seen["base"], GaussianActions(mean, log_std, squashed=True), self.config.scale)

    # ---- a policy like others --------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> LossTerms:
        """The distance of its actions from the recorded ones; only the correction has gradients."""
        return self._losses(batch, self._scaled(batch, None))

    @torch.no_grad()
    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """See `Policy.sample`: the base's chunk, with the most likely correction."""
        return self.action_scaler.denormalize(self._scaled(batch, generator), batch.source)

    @torch.no_grad()
    def losses_and_sample(self, batch: Batch) -> tuple[LossTerms, torch.Tensor]:
        scaled = self._scaled(batch, None)
        return self._losses(batch, scaled), self.action_scaler.denormalize(scaled, batch.source)

    def _scaled(self, batch: Batch, generator: torch.Generator | None) -> torch.Tensor:
        """Corrected chunks [B, H, A], scaled; actions beyond the executed ones have the same correction."""
        seen, scaled = self._look(batch, generator)
        return scaled + self.config.scale * self.corrected(seen).correction.most_likely

    @torch.no_grad()
    def _look(self, batch: Batch, generator: torch.Generator | None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The result of `seen_by_base`, and the base's whole chunks [B, H, A], scaled."""
        assert isinstance(self.base, GivesFeatures)
        features, actions = self.base.features_and_sample(batch, generator)
        scaled = self.action_scaler.normalize(actions, batch.source)
        proprio = self.proprio_scaler.normalize(batch.proprio, batch.source)
        executed = self.config.execute
        seen = {"features": features[:, :executed].mean(1), "scaled_proprio": proprio, "base": scaled[:, :executed]}
        return seen, scaled

    def _losses(self, batch: Batch, scaled: torch.Tensor) -> LossTerms:
        assert batch.actions is not None and batch.action_is_pad is not None
        wanted = self.action_scaler.normalize(batch.actions, batch.source)
        errors = F.smooth_l1_loss(scaled, wanted, beta=0.1, reduction="none")
        pose, grippers = self.parts_of_actions.split(errors)
        weights = GaussianHeadConfig()
        return self.parts_of_actions.losses(
            pose, grippers if grippers.shape[-1] else None, batch.action_is_pad, weights
        )

    def parts(self) -> dict[str, nn.Module]:
        return {"base": self.base, "correction": self.correction}

    # ---- saving, with the base's own weights -------------------------------------------------------------------

    @property
    def frozen(self) -> dict[str, FrozenWeights]:
        return self.base.frozen

    def is_own(self, name: str) -> bool:
        return not name.startswith("base.") or self.base.is_own(name.removeprefix("base."))

    def save_frozen(self, part: str, directory: Path) -> None:
        self.base.save_frozen(part, directory)

    def load_base(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.base.load_own_state_dict(weights)
