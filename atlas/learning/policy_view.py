"""A policy from state alone, as learning by reward sees it: rows of numbers in, scaled actions out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from atlas.config import Config
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.environments.environment import EnvironmentSpec
from atlas.errors import InputError
from atlas.learning.experience_replay import Column
from atlas.policies.action_distribution import GaussianActions
from atlas.policies.base import ActsAtRandom, Policy
from atlas.policies.processor import PolicyProcessor
from atlas.types import Batch, Observation


class PolicyView:
    """Rows are {"proprio": float32 [P], "task": uint8 [1]}, the place of the instruction among the world's."""

    def __init__(self, policy: Policy, instructions: tuple[str, ...]) -> None:
        """Raises InputError for a policy that looks at images, or does not say how likely its actions are."""
        if policy.processor.cameras or not isinstance(policy, ActsAtRandom) or not policy.acts_at_random:
            raise InputError(
                "Learning by reward trains a policy from state alone that acts at random: it needs "
                "model.vision.name=none and model.head.name=gaussian."
            )
        if policy.processor.history.steps > 1 or policy.processor.relative is not None:
            raise InputError(
                "Learning by reward takes policies that see the present alone and act as the world takes it: without "
                "data.history and relative actions."
            )
        self.policy, self._random = policy, policy
        self._instructions = instructions or ("",)
        processor = policy.processor
        self.columns = {"proprio": Column((processor.proprio_dim,), "float32"), "task": Column((1,), "uint8")}
        self._chunk = (processor.action_horizon, processor.action_spec.dim)
        self._proprio = processor.proprio_scaler()

    @property
    def action_dim(self) -> int:
        return self._chunk[0] * self._chunk[1]

    @property
    def state_dim(self) -> int:
        tasks = len(self._instructions)
        return self.policy.processor.proprio_dim + (tasks if tasks > 1 else 0)

    def trained(self) -> nn.Module:
        return self.policy

    def look(self, observation: Observation) -> dict[str, np.ndarray]:
        """A row."""
        task = self._instructions.index(observation.instruction)
        return {"proprio": observation.proprio.astype(np.float32), "task": np.array([task], np.uint8)}

    def distribution(self, seen: Mapping[str, torch.Tensor]) -> GaussianActions:
        return self._random.action_distribution(self._batch(seen))

    def state(self, seen: Mapping[str, torch.Tensor]) -> torch.Tensor:
        proprio = self._proprio.normalize(seen["proprio"], _no_source(seen["proprio"]))
        if len(self._instructions) == 1:
            return proprio
        told = torch.nn.functional.one_hot(seen["task"][:, 0].long(), len(self._instructions))
        return torch.cat([proprio, told.float()], 1)

    @torch.no_grad()
    def act(self, row: Mapping[str, np.ndarray], random: torch.Generator) -> np.ndarray:
        """Scaled actions [H * A] at random."""
        seen = {name: torch.from_numpy(values)[None] for name, values in row.items()}
        return self.distribution(seen).sample(random)[0].flatten().numpy()

    def in_units(self, scaled: np.ndarray) -> np.ndarray:
        """Scaled actions [H * A] as the environment takes them, float32 [H, A]."""
        chunk = torch.from_numpy(scaled).view(1, *self._chunk)
        units: torch.Tensor = self._random.action_scaler.denormalize(chunk, torch.zeros(1, dtype=torch.int64))[0]
        return units.numpy()

    def scaled(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of `in_units` for T single actions float32 [T, A], within [-1, 1]."""
        source = torch.zeros(len(actions), dtype=torch.int64)
        found: torch.Tensor = self._random.action_scaler.normalize(torch.tensor(actions), source)
        return found.clamp(-1, 1).numpy()

    def _batch(self, seen: Mapping[str, torch.Tensor]) -> Batch:
        proprio, only = seen["proprio"], self._instructions[0]
        if len(self._instructions) == 1:
            told = [only] * len(proprio)
        else:
            told = [self._instructions[task] for task in seen["task"][:, 0].tolist()]
        return Batch(None, proprio, told, _no_source(proprio))


def processor_of_world(spec: EnvironmentSpec, config: Config) -> PolicyProcessor:
    """Of a policy that begins from nothing: actions scaled from the world's bounds to [-1, 1], proprio as it is.

    Raises InputError for a world whose actions are choices, or have no bounds.
    """
    if spec.choices is not None:
        raise InputError(
            f"'{spec.name}' has discrete actions, one of {spec.choices}; policies here act by continuous numbers. "
            "gym:Pendulum-v1, for example, has those."
        )
    dim = spec.action_spec.dim
    low, high = spec.action_bounds or ((-1.0,) * dim, (1.0,) * dim)
    if not np.isfinite([*low, *high]).all():
        raise InputError(f"The actions of '{spec.name}' have no bounds ({low} to {high}); learning needs a range.")
    middle, half = (np.add(high, low) / 2).tolist(), (np.subtract(high, low) / 2).tolist()
    action = ColumnStatistics(tuple(middle), tuple(half), tuple(low), tuple(high), tuple(low), tuple(high))
    zeros, ones = (0.0,) * spec.proprio_dim, (1.0,) * spec.proprio_dim
    minus = tuple(-one for one in ones)
    proprio = ColumnStatistics(zeros, ones, minus, ones, minus, ones)
    statistics = DatasetStatistics(f"the ranges of {spec.name}", 1, 1, action, proprio, spec.name)
    return PolicyProcessor(
        cameras=(),
        camera_size=config.data.image_size,
        image_size=config.data.image_size,
        action_horizon=config.data.action_horizon,
        proprio_dim=spec.proprio_dim,
        action_spec=spec.action_spec,
        statistics=(statistics,),
        scaling=config.model.processor,
    )


def _no_source(proprio: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(proprio), dtype=torch.int64, device=proprio.device)
