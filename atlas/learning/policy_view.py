"""A policy as learning by reward sees it: rows of numbers (and images) in, a distribution of scaled actions out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import nn

from atlas.config import Config
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.environments.environment import EnvironmentSpec
from atlas.errors import InputError
from atlas.learning.experience_replay import Column, Replay
from atlas.policies.action_distribution import ActionDistribution, Noise
from atlas.policies.base import (
    ActsAtRandom,
    ActsByFlow,
    GivesFeatures,
    Policy,
    ShowsFeatures,
    TakesNoise,
    load_model_config,
    load_policy,
)
from atlas.policies.processor import PolicyProcessor
from atlas.registry import resolve_policy
from atlas.system.file_store import CONFIG
from atlas.types import Batch, Observation


class PolicyView:
    """Rows are {"proprio": float32 [P], "task": uint8 [1]}, where the task is the index of the world's instruction; for
    a policy with cameras also {"images": uint8 [V, 3, H, W]}."""

    def __init__(
        self,
        policy: Policy,
        instructions: tuple[str, ...],
        environment: str | None = None,
        execute: int | None = None,
        noise: Noise | None = None,
    ) -> None:
        """instructions, environment: the world's, and its name. execute: the number of actions executed per chunk;
        None: all. noise: for a policy that outputs a single action; None: for SAC, which needs a stochastic policy
        without images. Raises InputError for any other policy."""
        processor = policy.processor
        distribution = _distribution_of(policy, noise)
        if noise is None and (processor.cameras or distribution is None):
            raise InputError(
                "SAC trains a policy from state alone that acts at random by itself: it needs model.vision.name=none "
                "and model.head.name=gaussian. Any other can be corrected (atlas learn sac --residual)."
            )
        if distribution is None:
            raise InputError(
                "PPO and GRPO need a policy that says how likely its actions are: model.head.name=gaussian, "
                "flow_matching, or regression, to whose actions noise is added; vlm with any of its heads; of the "
                "published types smolvla, pi0 and pi05."
            )
        if processor.history.steps > 1 or processor.relative is not None:
            raise InputError(
                "Learning by reward takes policies that see the present alone and act as the world takes it: without "
                "data.history and relative actions."
            )
        self.policy, self._environment, self._noise, self._distribution = policy, environment, noise, distribution
        self._parameter = next(policy.parameters())  # one of them: it is asked for its device at every decision
        self._instructions = instructions or ("",)
        self._source = processor.source_for(environment)
        self.columns = {"proprio": Column((processor.proprio_dim,), "float32"), "task": Column((1,), "uint8")}
        if processor.cameras:
            shape = (processor.views, 3, processor.image_size, processor.image_size)
            self.columns["images"] = Column(shape, "uint8")
        horizon = processor.action_horizon
        self._chunk = (horizon if execute is None else min(execute, horizon), processor.action_spec.dim)
        self._proprio = processor.proprio_scaler()
        self._actions = processor.action_scaler()
        self._flows = isinstance(policy, ActsByFlow) and policy.acts_by_flow
        if self._flows:
            assert isinstance(policy, ActsByFlow)
            self._actions = copy.deepcopy(policy.action_scaler).cpu()

    def copy(self) -> PolicyView:
        """Return a view with a frozen copy of the policy."""
        policy = copy.deepcopy(self.policy).eval().requires_grad_(False)
        return PolicyView(policy, self._instructions, self._environment, self._chunk[0], self._noise)

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    @property
    def execute(self) -> int:
        """The number of a chunk's actions that are executed."""
        return self._chunk[0]

    @property
    def action_dim(self) -> int:
        return self._chunk[0] * self._chunk[1]

    @property
    def state_dim(self) -> int:
        tasks = len(self._instructions)
        features = self._feature_dim if self.policy.processor.cameras else 0
        return self.policy.processor.proprio_dim + (tasks if tasks > 1 else 0) + features

    @property
    def _feature_dim(self) -> int:
        """The width of the image features. Raises InputError for a policy that gives none."""
        if isinstance(self.policy, GivesFeatures):
            return self.policy.feature_dim
        if isinstance(self.policy, ShowsFeatures):
            rows = {name: torch.zeros(1, *c.shape, dtype=getattr(torch, c.dtype)) for name, c in self.columns.items()}
            with torch.no_grad():
                return int(self.policy.image_features(self._batch(rows)).shape[-1])
        raise InputError(
            f"A policy of the type {self.policy.config.type} gives no features to foresee values from; "
            "`atlas learn grpo` needs none."
        )

    def _features(self, batch: Batch) -> torch.Tensor:
        """The features of the observations, float32 [B, D]."""
        if isinstance(self.policy, GivesFeatures):
            return self.policy.features_and_sample(batch)[0][:, : self.execute].mean(1)
        assert isinstance(self.policy, ShowsFeatures)
        return self.policy.image_features(batch).float()

    def trained(self) -> nn.Module:
        return self.policy

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that actors need from a learner."""
        return self.policy.own_state_dict()

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        self.policy.load_own_state_dict(weights)

    def look(self, observation: Observation) -> dict[str, np.ndarray]:
        """The row of an observation."""
        task = self._instructions.index(observation.instruction)
        row: dict[str, np.ndarray] = {"proprio": observation.proprio.astype(np.float32)}
        row["task"] = np.array([task], np.uint8)
        if self.policy.processor.cameras:
            images = self.policy.processor.batch([observation]).images
            assert images is not None
            row["images"] = images[0].numpy()
        return row

    def distribution(self, observations: Mapping[str, torch.Tensor]) -> ActionDistribution:
        """The distribution of scaled actions [B, execute, A]; gradients flow through samples of a stochastic policy."""
        return self._distribution(self._batch(observations)).first(self.execute)

    def state(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The input of the value networks, float32 [B, state_dim], without gradients."""
        with torch.no_grad():
            device = self.device
            observations = {name: values.to(device) for name, values in observations.items()}
            if self._proprio.offset.device != device:
                self._proprio.to(device)
            proprio = observations["proprio"]
            parts = [self._proprio.normalize(proprio, self._sources(proprio))]
            if len(self._instructions) > 1:
                one_hot = torch.nn.functional.one_hot(observations["task"][:, 0].long(), len(self._instructions))
                parts.append(one_hot.float())
            if self.policy.processor.cameras:
                parts.append(self._features(self._batch(observations)))
            return torch.cat(parts, 1)

    @torch.no_grad()
    def act(self, row: Mapping[str, np.ndarray], random: torch.Generator) -> np.ndarray:
        """Sample scaled actions [H * A]."""
        observations = {name: torch.from_numpy(values)[None] for name, values in row.items()}
        return self.distribution(observations).sample(random)[0].flatten().cpu().numpy()

    def at_random(self, row: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Scaled actions [H * A], uniform over their range."""
        return rng.uniform(-1, 1, self.action_dim).astype(np.float32)

    def penalty(self, observations: Mapping[str, torch.Tensor], actions: torch.Tensor) -> None:
        """See `Acts.penalty`: there is none."""

    def executed(self, actions: torch.Tensor) -> torch.Tensor:
        """See `Acts.executed`: a squashed policy's actions lie within the scaled range, so the world clips none."""
        return actions

    @property
    def random_dim(self) -> int:
        return self.action_dim

    def demonstrations(self, path: str) -> Replay:
        """Recorded episodes as decisions: the last one of each ends the task with reward 1, all others have reward 0.

        Raises InputError for a dataset that is not from the policy's world, or a policy of chunks.
        """
        dataset, processor = open_dataset(path), self.policy.processor
        key, horizon = "learning.sac.demonstrations", processor.action_horizon
        if horizon != 1:
            raise InputError(f"{key} goes with policies of single actions, and this one gives {horizon} at once.")
        check_demonstrations(dataset, path, key, processor, self._instructions)
        frames, numbers = int(dataset.lengths.sum()), dataset.numbers()
        replay = Replay(frames + len(dataset) + 1, self.columns, self.action_dim)
        for episode, task in enumerate(dataset.task_of.tolist()):
            rows = dataset.rows(episode)
            proprio, actions = np.asarray(numbers.proprio[rows]), self.scaled(np.asarray(numbers.actions[rows]))
            task_rows = np.full((len(actions), 1), self._instructions.index(dataset.tasks[task]), np.uint8)
            # The observation after the last action is not recorded; it has no value, because the task is over.
            next_observations = {"proprio": np.concatenate([proprio[1:], proprio[-1:]]), "task": task_rows}
            rewards = np.zeros(len(actions), np.float32)
            rewards[-1] = 1
            replay.begin({"proprio": proprio[0], "task": task_rows[0]})
            replay.extend(actions, rewards, next_observations, terminated=True)
        return replay

    def in_units(self, scaled: np.ndarray) -> np.ndarray:
        """Convert scaled actions [..., H * A], or denoising paths of chunks, to the environment's units: float32 [...,
        H, A]."""
        horizon, dim = self.policy.processor.action_horizon, self._chunk[1]
        chunks = torch.from_numpy(scaled)
        if self._flows:  # in a path, the actions stand before its last number
            chunks = chunks.view(*scaled.shape[:-1], horizon, -1)[..., : self.execute, -1 - dim : -1]
        chunks = chunks.reshape(-1, *self._chunk)
        units: torch.Tensor = self._actions.denormalize(chunks, self._sources(chunks))
        return units.numpy().reshape(*scaled.shape[:-1], *self._chunk)

    def scaled(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of `in_units` for T single actions float32 [T, A], within [-1, 1]."""
        scaled: torch.Tensor = self._actions.normalize(torch.tensor(actions), self._sources(actions))
        return scaled.clamp(-1, 1).numpy()

    def _batch(self, observations: Mapping[str, torch.Tensor]) -> Batch:
        device = self.device
        observations = {name: values.to(device) for name, values in observations.items()}
        proprio, only = observations["proprio"], self._instructions[0]
        if len(self._instructions) == 1:
            instructions = [only] * len(proprio)
        else:
            instructions = [self._instructions[task] for task in observations["task"][:, 0].tolist()]
        return Batch(observations.get("images"), proprio, instructions, self._sources(proprio))

    def _sources(self, rows: torch.Tensor | np.ndarray) -> torch.Tensor:
        device = rows.device if isinstance(rows, torch.Tensor) else None
        return torch.full((len(rows),), self._source, dtype=torch.int64, device=device)


def _distribution_of(policy: Policy, noise: Noise | None) -> Callable[[Batch], ActionDistribution] | None:
    """The function that gives the distribution of a policy's scaled actions; None: it has none. noise: see
    `PolicyView`."""
    if isinstance(policy, ActsAtRandom) and policy.acts_at_random:
        return policy.action_distribution
    if noise is not None and isinstance(policy, TakesNoise) and policy.takes_noise:
        return partial(policy.noisy_distribution, noise=noise)
    if noise is not None and isinstance(policy, ActsByFlow) and policy.acts_by_flow:
        return partial(policy.flow_distribution, noise=noise.flow)
    return None


def load_start(checkpoint: str, margin: float | None) -> Policy:
    """Load the initial policy of a run. margin: how far its proprio may lie outside the range of the demonstrations,
    see ProcessorConfig.proprio_margin; ignored if it is None, or the policy has its own margin or its own scaling.

    Exploration leaves the range of the demonstrations, and a policy gives no sensible answer to a scaled input in the
    hundreds. Within the range the policy acts as before. Raises InputError.
    """
    folder = resolve_policy(checkpoint)
    if margin is None or not (folder / CONFIG).exists() or not load_model_config(folder / CONFIG).clips_proprio:
        return load_policy(folder)
    processor = PolicyProcessor.load(folder / "processor.json")
    own = processor.scaling.proprio_margin is not None
    return load_policy(folder) if own else load_policy(folder, processor.with_margin(margin))


def check_demonstrations(
    dataset: EpisodeDataset, path: str, key: str, processor: PolicyProcessor, instructions: tuple[str, ...]
) -> None:
    """Raises InputError for a dataset whose proprio, actions or instructions are not the policy's and its world's.

    key: the setting that names the dataset.
    """
    differing = [
        f"{what} {its}, not {own}" for what, own, its in processor.action_spec.differences(dataset.action_spec)
    ]
    if dataset.proprio_dim != processor.proprio_dim:
        differing.append(f"its proprio has {dataset.proprio_dim} numbers, not {processor.proprio_dim}")
    if unknown := [task for task in dataset.tasks if task not in instructions]:
        differing.append(f"its instruction '{unknown[0]}' is none of the world's")
    if differing:
        raise InputError(f"{key}: {path} does not fit the policy: {'; '.join(differing)}.")


def processor_of_world(spec: EnvironmentSpec, config: Config) -> PolicyProcessor:
    """The processor of a policy trained from scratch: actions scaled from the world's bounds to [-1, 1], proprio
    unchanged.

    Raises InputError for a world whose actions are discrete or unbounded.
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
