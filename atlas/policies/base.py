"""The contract of policies: what a trainer, a rollout and a server need, and nothing more.

    policy = load_policy("outputs/first")       # a run, a checkpoint, a saved policy, wandb:… or hf:…
    actions = policy.sample(batch)              # float32 [B, H, A]

A type is a section of the config derived from `ModelConfig`, whose `build` returns a class derived from `Policy`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import yaml
from torch import nn

from atlas.config.model_section import MODEL, ModelConfig
from atlas.errors import InputError, did_you_mean, first_line
from atlas.policies.action_distribution import CorrectedActions, FlowActions, GaussianActions, Noise, NoisyActions
from atlas.policies.model_card import model_card
from atlas.policies.pretrained_weights import FrozenWeights
from atlas.policies.processor import PolicyProcessor, Scaler
from atlas.policies.published.lerobot_folder import LeRobotFolder, libero_cameras
from atlas.policies.reference_answers import ReferenceAnswers
from atlas.policies.strict_loading import FROZEN, check_frozen, check_weights, read_weights
from atlas.registry import resolve_policy
from atlas.registry.lerobot_policies import is_lerobot_policy, lerobot_kind
from atlas.system.documents import read_yaml
from atlas.system.file_store import CONFIG
from atlas.system.files import atomic_path, write_text
from atlas.system.tensors import save_tensors
from atlas.types import Batch, LossTerms


class Policy(nn.Module, ABC):
    """A network between the numbers of a dataset and actions, with the processor that says what both mean.

    A type must define forward, `sample` and `losses_and_sample`; it overrides the rest where the defaults are wrong.
    """

    reference_answers: ReferenceAnswers | None = None  # its answers when it was validated; None: there are none

    def __init__(self, config: ModelConfig, processor: PolicyProcessor) -> None:
        super().__init__()
        self.config, self.processor = config, processor

    @property
    def validated_execute(self) -> int | None:
        """How many actions of each chunk were executed where it was validated; None: unknown."""
        return None if self.reference_answers is None else self.reference_answers.execute

    # ---- acting and learning -----------------------------------------------------------------------------

    @abstractmethod
    def forward(self, batch: Batch) -> LossTerms:
        """The losses of a batch with actions; images uint8, or float in [0, 1]."""

    @abstractmethod
    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions float32 [B, H, A] in the ActionSpec's units, without gradients.

        Random choices follow from `generator`, otherwise from the batch's keys, otherwise from torch's own generator.
        """

    @abstractmethod
    def losses_and_sample(self, batch: Batch) -> tuple[LossTerms, torch.Tensor]:
        """The results of `forward` and `sample`, without gradients, with a single look at the images."""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The names of the terms that `forward` returns, "loss" first."""
        return ("loss", *self.config.loss_terms(self.processor.action_spec))

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks that are trained, in the order in which `forward` first calls them.

        Each is called as a module, takes and returns tensors, and is not part of another. These blocks are recomputed
        in the backward pass, compiled, and gathered one by one if the policy is sharded over GPUs.
        """
        return []

    def learning_rate_factor(self, name: str) -> float:
        """The factor of training's learning rate for a parameter, by its name."""
        return 1.0

    def parts(self) -> dict[str, nn.Module]:
        """Its parts, by name, for a summary: together they hold all parameters used in a rollout."""
        return {name: part for name, part in self.named_children() if any(True for _ in part.parameters())}

    # ---- saving and loading ------------------------------------------------------------------------------

    @property
    def frozen(self) -> dict[str, FrozenWeights]:
        """The parts with frozen pretrained weights, which are named in what is saved but not part of it."""
        return {}

    def is_own(self, name: str) -> bool:
        """Whether a tensor of the state dict is saved: not if `frozen` covers it, or it is for training only."""
        return True

    def save_frozen(self, part: str, directory: Path) -> None:
        """Write a copy of a frozen part below `directory/frozen`, where the section's `build` looks for it."""
        raise NotImplementedError(f"{type(self).__name__} has no frozen part {part}")

    def keep_origin(self, run_dir: Path) -> None:
        """Keep in a run's folder what its frozen parts were read from, where that is somebody's folder, so that what is
        saved from now on loads when that is gone."""

    def own_state_dict(self) -> dict[str, torch.Tensor]:
        """The state dict without what is not saved; see `is_own`."""
        return {name: tensor for name, tensor in self.state_dict().items() if self.is_own(name)}

    def load_own_state_dict(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `own_state_dict`; the names must be the same."""
        assert weights.keys() == self.own_state_dict().keys()
        self.load_state_dict(weights, strict=False)

    def load_weights(self, path: Path) -> None:
        """Load a safetensors file strictly. Raises InputError that names the first tensors that do not fit, or the
        frozen part that differs from the one the weights were trained with."""
        weights, frozen = read_weights(path)
        check_frozen(path, frozen, self.frozen)
        check_weights(path, weights, self.own_state_dict())
        self.load_own_state_dict(weights)

    def save_pretrained(
        self, directory: str | Path, full: bool = False, weights: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Write model.safetensors, config.yaml, processor.json and README.md, each file atomically.

        Frozen pretrained parts are only named, with their hashes, unless `full`: then copies of them are saved too.
        weights: what to write instead of `own_state_dict()`, such as an earlier copy of it.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        frozen = {part: asdict(weights) for part, weights in self.frozen.items()}
        own = self.own_state_dict() if weights is None else weights
        with atomic_path(directory / "model.safetensors") as partial:
            save_tensors(partial, own, {"format": "pt", FROZEN: json.dumps(frozen, sort_keys=True)})
        write_text(directory / CONFIG, yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        self.processor.save(directory / "processor.json")
        write_text(directory / "README.md", model_card(self))
        if weights is None and self.reference_answers is not None:
            self.reference_answers.save(directory)
        if full:
            for part in frozen:
                self.save_frozen(part, directory)


def build_policy(
    config: ModelConfig,
    processor: PolicyProcessor,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
) -> Policy:
    """The policy that a section builds, on the device; see `ModelConfig.build`. Raises InputError."""
    more: dict[str, Any] = {"device": torch.device(device)} if config.builds_on_device else {}
    policy = config.build(processor, folder, **more)
    assert isinstance(policy, Policy), f"{type(config).__name__}.build gives {type(policy).__name__}, not a Policy"
    return policy.to(device)


def load_policy(
    reference: str | Path,
    processor: PolicyProcessor | None = None,
    cameras: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
) -> Policy:
    """Load a saved policy, strictly, in eval mode on the device; `reference` as in `atlas.registry`.

    processor: replaces the one that was saved with an Atlas policy, for data of other sources.

    The `type` in its config.yaml says what it is (absent: `modular`); a LeRobot folder, with a config.json, is a policy
    of the type named there, with the folder's processor. cameras: {a LeRobot policy's camera: its name here}; None: the
    same names. Frozen parts are read from the policy's folder if it has copies, otherwise from where its config says;
    their hashes must be those it was saved with. Raises InputError, which names it, for a file that is missing, damaged
    or does not fit its config, and for an unknown type.
    """
    directory = resolve_policy(reference)
    if is_lerobot_policy(directory):
        return _of_lerobot(directory, str(reference), cameras, device)
    if cameras is not None:
        raise InputError(f"{reference} names its cameras itself; they can be chosen only for LeRobot's folders.")
    config = load_model_config(directory / CONFIG)
    if processor is None:
        processor = PolicyProcessor.load(directory / "processor.json")
    try:
        policy = build_policy(config, processor, directory, device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError, AssertionError) as error:
        raise InputError(f"No policy can be built from {directory / CONFIG} ({first_line(error)}).") from error
    policy.load_weights(directory / "model.safetensors")
    policy.reference_answers = ReferenceAnswers.load(directory)
    return policy.eval()


def _of_lerobot(
    directory: Path, reference: str, cameras: Mapping[str, str] | None, device: torch.device | str
) -> Policy:
    """The policy in a LeRobot folder. Raises InputError for a type that is not supported here."""
    kinds = {name: MODEL.table.find(name) for name in MODEL.table.names()}
    readers: dict[str, Any] = {name: kind for name, kind in kinds.items() if hasattr(kind, "of_lerobot")}
    kind = lerobot_kind(directory)
    if kind not in readers:
        near = did_you_mean(kind, list(readers))
        raise InputError(
            f"{reference} is a LeRobot policy of the type '{kind}', which Atlas does not read.{near} "
            f"Known: {', '.join(readers)}."
        )
    cameras = cameras or libero_cameras(LeRobotFolder.open(directory))
    policy = readers[kind](pretrained=reference, cameras=cameras).of_lerobot(directory, torch.device(device))
    assert isinstance(policy, Policy)
    return policy.to(device)


def load_model_config(file: Path) -> ModelConfig:
    """The config that a policy was saved with. Raises InputError."""
    try:
        values = read_yaml(file)
        if isinstance(values, dict) and MODEL.kind(values) is None:
            known = MODEL.table.unknown(values["type"])
            raise InputError(
                f"{file} describes a policy of the type '{values['type']}', which is not known here: install the "
                f"package that has it.{known}"
            )
        config: ModelConfig = MODEL.validate(values)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not the config of a policy: {error}") from None
    return config


# ---- optional abilities of some types that training uses -------------------------------------------------


@runtime_checkable
class FollowsChunks(Protocol):
    """Can make a chunk that continues the one being executed (real-time chunking)."""

    @property
    def follows(self) -> bool:
        """Whether it can, as it is configured."""
        ...

    def sample_following(self, batch: Batch, previous: torch.Tensor, delay: int) -> torch.Tensor:
        """Like `Policy.sample`. previous: the rest of the current chunk from the batch's moment on, float32 [B, R, A]
        in the ActionSpec's units; delay: how many of its actions will be executed before the new chunk is there."""
        ...


@runtime_checkable
class LearnsFromTeacher(Protocol):
    """Is trained with the help of a model that is not part of it."""

    def load_teacher(self, read_weights: bool = True) -> None:
        """Read the teacher's weights, before training. Raises InputError if they are not available."""


@runtime_checkable
class InstructionMemory(Protocol):
    """A frozen language encoder's output for instructions; see HuggingFaceLanguageEncoder."""

    def to(self, device: torch.device | str) -> object: ...

    def unknown(self, instructions: Iterable[str]) -> list[str]: ...

    def encode(self, instructions: Iterable[str]) -> dict[str, torch.Tensor]: ...

    def remember(self, tokens: Mapping[str, torch.Tensor]) -> None: ...

    def save_embeddings(self, path: Path) -> None: ...

    def load_embeddings(self, path: Path) -> int: ...


@runtime_checkable
class RemembersInstructions(Protocol):
    """Reads each instruction once, if its language encoder is frozen."""

    @property
    def instruction_memory(self) -> InstructionMemory | None:
        """None if the language encoder is trained."""


@runtime_checkable
class ReadsFeatures(Protocol):
    """Takes batches with `features` instead of images, if its section has a `cached_encoder`."""

    def cached_encoder_hash(self) -> str:
        """The hash of the weights of the encoder that computes these."""


@runtime_checkable
class ShowsFeatures(Protocol):
    """Can show how it sees a sample, for a map of the dataset."""

    def image_features(self, batch: Batch) -> torch.Tensor:
        """Return what its vision computes from the images, or features, of each sample: float [B, D]."""


@runtime_checkable
class ActsAtRandom(Protocol):
    """Knows how likely each action is, which learning by reward needs."""

    action_scaler: Scaler

    @property
    def acts_at_random(self) -> bool:
        """Whether it does, with its parts."""

    def action_distribution(self, batch: Batch) -> GaussianActions:
        """The distribution of the scaled actions, with gradients."""


@runtime_checkable
class TakesNoise(Protocol):
    """Gives one action, around which noise of a given size makes others, so that learning by reward can try them."""

    action_scaler: Scaler

    @property
    def takes_noise(self) -> bool:
        """Whether its parts allow that."""

    def noisy_distribution(self, batch: Batch, noise: Noise) -> NoisyActions:
        """The distribution of the scaled actions, with gradients. Raises InputError for grippers whose probability of
        closing it does not give."""


@runtime_checkable
class ActsByFlow(Protocol):
    """Grows its chunks from noise, a step of which may be random, so that it can be said how likely each is."""

    action_scaler: Scaler

    @property
    def acts_by_flow(self) -> bool:
        """Whether its parts do so."""
        ...

    def flow_distribution(self, batch: Batch, noise: float) -> FlowActions:
        """Return the distribution of the scaled actions, with gradients; noise: its size, see `FlowActions`."""
        ...


@runtime_checkable
class GivesFeatures(Protocol):
    """Gives its features of a sample, for networks that learn from these instead of from images."""

    @property
    def feature_dim(self) -> int: ...

    def features_and_sample(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The features that its actions are computed from, float32 [B, H, feature_dim], and the result of
        `Policy.sample`."""


@runtime_checkable
class Corrects(Protocol):
    """Adds a small learned correction to the actions of a frozen policy."""

    @property
    def feature_dim(self) -> int: ...

    @property
    def execute(self) -> int:
        """The number of a chunk's actions that share the correction; no more are executed."""
        ...

    def corrected_part(self) -> nn.Module:
        """The module that is trained."""
        ...

    def seen_by_base(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        """The inputs of corrections, instead of images: `features` [B, feature_dim], `scaled_proprio` [B, P] and `base`
        [B, execute, A], the scaled actions to correct."""
        ...

    def corrected(self, seen: Mapping[str, torch.Tensor]) -> CorrectedActions:
        """The corrected actions for the result of `seen_by_base`, with gradients."""
        ...

    def load_base(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Load the own weights of the corrected policy."""
        ...


@runtime_checkable
class RecomputesBlocks(Protocol):
    """A module inside a policy that recomputes its own blocks in the backward pass, as long as this is true."""

    recompute: bool


@runtime_checkable
class CountsTokens(Protocol):
    """Works on tokens, and can count them."""

    def count_tokens(self, batch: Batch) -> dict[str, int]:
        """The tokens of each kind per sample, such as {"vision": 138, "language": 12}; may be on the meta device."""
