"""A frozen policy with a small correction, as SAC sees it: the policy's features take the place of its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from atlas.config import Config, ResidualSacConfig
from atlas.config.model_section import MODEL
from atlas.data.formats import open_dataset
from atlas.environments.environment import EnvironmentSpec
from atlas.errors import InputError
from atlas.learning.experience_replay import Column, Replay
from atlas.learning.policy_view import check_demonstrations, load_start
from atlas.policies.action_distribution import CorrectedActions
from atlas.policies.base import Corrects, Policy
from atlas.registry import resolve_policy
from atlas.rollout.evaluation import check_policy_fits
from atlas.types import Observation

_ROWS = 64  # frames of demonstrations per forward pass of the policy


class ResidualView:
    """Rows are the inputs of the correction, the index of the world's instruction and, if configured, the positions of
    the objects, for the critics only; observations then carry these after their proprio."""

    def __init__(self, policy: Policy, spec: EnvironmentSpec, settings: ResidualSacConfig) -> None:
        """Raises InputError if object positions are configured and the world does not report them."""
        assert isinstance(policy, Corrects)
        self.policy, self._corrects, self._settings = policy, policy, settings
        self._instructions = spec.instructions or ("",)
        if settings.object_positions and not spec.object_numbers:
            raise InputError(
                f"learning.residual.object_positions is true, but '{spec.name}' does not tell where its objects are; "
                "cubes and metaworld-… do."
            )
        self._objects = spec.object_numbers if settings.object_positions else 0
        processor = policy.processor
        self._source = processor.source_for(spec.name)
        self._shape = (policy.execute, processor.action_spec.dim)
        self.columns = {
            "features": Column((policy.feature_dim,), "float16"),
            "scaled_proprio": Column((processor.proprio_dim,), "float32"),
            "base": Column(self._shape, "float32"),
            "task": Column((1,), "uint8"),
        }
        if self._objects:
            self.columns["objects"] = Column((self._objects,), "float32")
        self._scaler = processor.action_scaler()
        self._range = self._scaled_range(spec)
        self._last_look: tuple[Observation, dict[str, np.ndarray]] | None = None

    # ---- what SAC learns from ----------------------------------------------------------------------------------

    @property
    def execute(self) -> int:
        return self._shape[0]

    @property
    def action_dim(self) -> int:
        return self._shape[0] * self._shape[1]

    @property
    def random_dim(self) -> int:
        return self._shape[1]

    @property
    def state_dim(self) -> int:
        columns = (column for name, column in self.columns.items() if name != "task")
        tasks = len(self._instructions)
        return sum(int(np.prod(column.shape)) for column in columns) + (tasks if tasks > 1 else 0)

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device

    def trained(self) -> nn.Module:
        return self._corrects.corrected_part()

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that actors need from a learner: they have the frozen policy themselves."""
        return self.trained().state_dict()

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        self.trained().load_state_dict(weights)

    def frozen_digest(self) -> str:
        """The digest of the frozen weights."""
        part, digest = {id(each) for each in self.trained().parameters()}, hashlib.sha256()
        for name, values in sorted(self.policy.named_parameters()):
            if id(values) not in part:
                digest.update(name.encode() + values.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def distribution(self, observations: Mapping[str, torch.Tensor]) -> CorrectedActions:
        return self._corrects.corrected({name: values.to(self.device) for name, values in observations.items()})

    def state(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Acts.state`: includes the positions of the objects, which the correction does not see."""
        parts = [observations[name].to(self.device).float().flatten(1) for name in self.columns if name != "task"]
        if len(self._instructions) > 1:
            one_hot = torch.nn.functional.one_hot(
                observations["task"].to(self.device)[:, 0].long(), len(self._instructions)
            )
            parts.append(one_hot.float())
        return torch.cat(parts, 1)

    def penalty(
        self, observations: Mapping[str, torch.Tensor], actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The penalty of large corrections, and their mean size relative to the largest one."""
        correction = (actions - observations["base"].to(actions.device)) / self._settings.scale
        return self._settings.penalty * correction.square().mean(), correction.detach().abs().mean()

    def executed(self, actions: torch.Tensor) -> torch.Tensor:
        """See `Acts.executed`: the policy's action plus its correction may exceed the world's bounds."""
        return actions if self._range is None else actions.clamp(*(end.to(actions.device) for end in self._range))

    def _scaled_range(self, spec: EnvironmentSpec) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The lowest and the highest scaled actions [H * A] that the world executes; None if it has no bounds."""
        if spec.action_bounds is None:
            return None
        ends = torch.tensor(spec.action_bounds, dtype=torch.float32)
        ends = self._scaler.normalize(ends, torch.full((2,), self._source)).repeat(1, self._shape[0])
        return ends.min(0).values, ends.max(0).values

    # ---- acting ------------------------------------------------------------------------------------------------

    def look(self, observation: Observation) -> dict[str, np.ndarray]:
        """The row of an observation. The last row is kept, because an observation ends one decision and begins the
        next."""
        if self._last_look is not None and self._last_look[0] is observation:
            return self._last_look[1]
        proprio_dim = self.policy.processor.proprio_dim
        task = self._instructions.index(observation.instruction)
        own = replace(observation, proprio=observation.proprio[:proprio_dim])
        row = {name: values[0] for name, values in self._base_rows([own]).items()}
        row["task"] = np.array([task], np.uint8)
        if self._objects:
            row["objects"] = observation.proprio[proprio_dim:].astype(np.float32)
        self._last_look = observation, row
        return row

    @torch.no_grad()
    def act(self, row: Mapping[str, np.ndarray], random: torch.Generator) -> np.ndarray:
        """Scaled actions [H * A] with a sampled correction."""
        observations = {name: torch.from_numpy(values)[None] for name, values in row.items()}
        return self.distribution(observations).sample(random)[0].flatten().cpu().numpy()

    def at_random(self, row: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Scaled actions [H * A] with a correction that is uniform over its range."""
        drawn = rng.uniform(-1, 1, (1, self._shape[1])).astype(np.float32)
        corrected: np.ndarray = row["base"] + np.float32(self._settings.scale) * drawn
        return corrected.flatten()

    def in_units(self, scaled: np.ndarray) -> np.ndarray:
        """Convert scaled actions [H * A] to the environment's units, float32 [H, A]."""
        chunk = torch.from_numpy(scaled).view(1, *self._shape)
        units: torch.Tensor = self._scaler.denormalize(chunk, torch.tensor([self._source]))[0]
        return units.numpy()

    def _base_rows(self, observations: list[Observation]) -> dict[str, np.ndarray]:
        batch = self.policy.processor.batch(observations, self._source).to(self.device)
        return {
            name: values.cpu().numpy().astype(self.columns[name].dtype)
            for name, values in self._corrects.seen_by_base(batch).items()
        }

    # ---- demonstrations ----------------------------------------------------------------------------------------

    def demonstrations(self, path: str) -> Replay:
        """Recorded episodes as decisions: the last one of each ends the task with reward 1, all others have reward 0.

        Raises InputError for a dataset that is not from the policy's world, or if critics get object positions.
        """
        key = "learning.residual.demonstrations"
        if self._objects:
            raise InputError(
                f"{key}: recordings do not say where the objects are; set learning.residual.object_positions=false "
                "beside them."
            )
        dataset, processor = open_dataset(path), self.policy.processor
        check_demonstrations(dataset, path, key, processor, self._instructions)
        if missing := [camera for camera in processor.cameras if camera not in dataset.cameras]:
            raise InputError(f"{key}: {path} lacks the cameras {missing} that the policy looks at.")
        numbers, length = dataset.numbers(), self._shape[0]
        rows = sum(-(-int(frames) // length) for frames in dataset.lengths)
        replay = Replay(rows + len(dataset) + 1, self.columns, self.action_dim)
        for episode, task in enumerate(dataset.task_of.tolist()):
            at = dataset.rows(episode)
            proprio, actions = np.asarray(numbers.proprio[at]), torch.tensor(np.asarray(numbers.actions[at]))
            scaled = self._scaler.normalize(actions, torch.full((len(actions),), self._source)).numpy()
            frames = np.arange(0, len(actions), length)
            whole = np.concatenate([scaled, np.repeat(scaled[-1:], -len(scaled) % length, 0)])
            images = {
                camera: dataset.images(camera, np.full(len(frames), episode), frames) for camera in processor.cameras
            }
            observations = [
                Observation({camera: images[camera][i] for camera in images}, proprio[frame], dataset.tasks[task])
                for i, frame in enumerate(frames)
            ]
            parts = [self._base_rows(observations[i : i + _ROWS]) for i in range(0, len(observations), _ROWS)]
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            columns["task"] = np.full((len(frames), 1), self._instructions.index(dataset.tasks[task]), np.uint8)
            next_columns = {name: np.concatenate([values[1:], values[-1:]]) for name, values in columns.items()}
            rewards = np.zeros(len(frames), np.float32)
            rewards[-1] = 1
            replay.begin({name: values[0] for name, values in columns.items()})
            replay.extend(whole.reshape(len(frames), -1), rewards, next_columns, terminated=True)
        return replay


def corrected_policy(config: Config, spec: EnvironmentSpec, checkpoint: str) -> Policy:
    """A run's policy, frozen, with a correction of zero. Raises InputError for a policy that cannot be corrected."""
    settings, folder = config.learning.residual, resolve_policy(checkpoint)
    base = load_start(checkpoint, config.learning.proprio_margin)
    check_policy_fits(base.processor, spec)
    section = MODEL.validate(
        {
            "type": "residual",
            "base": base.config.model_dump(mode="json"),
            "processor": base.processor.scaling.model_dump(mode="json"),
            "execute": min(config.evaluation.execute, base.processor.action_horizon),
            "scale": settings.scale,
            "width": settings.actor_width,
            "layers": settings.actor_layers,
        }
    )
    torch.manual_seed(config.seed)
    policy = section.build(base.processor, folder)
    assert isinstance(policy, Policy) and isinstance(policy, Corrects)
    policy.load_base(base.own_state_dict())
    return policy.train()
