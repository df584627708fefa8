"""A policy that computes a prefix once, and whose action expert makes a chunk from noise: SmolVLA, pi0 and pi0.5."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from atlas.data.image_fit import ImageFit
from atlas.errors import InputError
from atlas.policies.action_distribution import FlowActions
from atlas.policies.adapters import plain_name
from atlas.policies.attention import Attention, after_one_step, by_gradient
from atlas.policies.base import Policy
from atlas.policies.chunk_guidance import Guidance
from atlas.policies.pretrained_weights import FrozenWeights, weights_hash
from atlas.policies.processor import PolicyProcessor
from atlas.policies.published.camera_slots import CameraSlots
from atlas.policies.published.description import Description
from atlas.policies.published.flow_pieces import (
    FlowTime,
    draw_start,
    draw_training,
    integrate_euler,
    mix,
)
from atlas.policies.published.lazy_tensors import TensorFile
from atlas.policies.published.picture_features import frozen_sight, look_on, sight_weights
from atlas.policies.published.processor_files import TokenizerStep
from atlas.policies.published.published_section import DESCRIPTION, PublishedConfig
from atlas.policies.published.tokenized_prompt import PromptTokenizer
from atlas.policies.published.weight_filling import BACKBONE_FILE
from atlas.policies.strict_loading import check_forms, check_frozen, frozen_named, is_finite
from atlas.registry.lerobot_policies import WEIGHTS
from atlas.system.device_copies import send
from atlas.system.file_store import link_or_copy
from atlas.system.files import atomic_path
from atlas.system.tensors import save_tensors
from atlas.types import Batch, LossTerms

BACKBONE = "backbone"  # the frozen part's name


@dataclass
class Prefix:
    """The memory that an expert reads at every step: each layer's keys and values of B samples with P tokens."""

    keys: list[torch.Tensor]  # per layer [B, P, key-value heads, head size], rotated
    values: list[torch.Tensor]
    valid: torch.Tensor  # bool [B, P]
    state: torch.Tensor | None = None  # float32 [B, width], normalised and padded, where the suffix takes it

    def repeated(self, times: int) -> Prefix:
        """Each sample's memory as many times, for B * times samples; those of one sample follow each other."""
        if times == 1:
            return self
        keys, values = ([each.repeat_interleave(times, 0) for each in part] for part in (self.keys, self.values))
        state = None if self.state is None else self.state.repeat_interleave(times, 0)
        return replace(self, keys=keys, values=values, valid=self.valid.repeat_interleave(times, 0), state=state)


class FlowPolicy(Policy):
    """A type defines `look` and `velocity`; time, noise, loss, sampling, scaling and saving are common.

    A type's `__init__` sets `network`, whose names are those of the published file without the leading `model.`, then
    calls `_hold_trained`.
    """

    config: PublishedConfig
    network: Any  # a module with the protocol `Sees`

    _pose: torch.Tensor  # int64: the dimensions of an action that are no gripper, and those that are
    _grippers: torch.Tensor

    def __init__(
        self,
        config: PublishedConfig,
        processor: PolicyProcessor,
        description: Description,
        slots: CameraSlots,
        tokenizer: PromptTokenizer | None,
        fit: ImageFit,
        width: int,
        time: FlowTime,
        steps: int,
    ) -> None:
        """width: of padded actions. tokenizer: None for a policy of which only shapes are needed."""
        super().__init__(config, replace(processor, fit=fit))
        self.description, self.slots = description, slots
        self._tokenizer, self._width, self._time = tokenizer, width, time
        self._steps, self._draws = config.sampling_steps or steps, config.noise_draws
        self.state_scaler, self.action_scaler = description.scalers(processor)
        grippers = [dimension for dimension, _ in processor.action_spec.grippers]
        # On the device: an index of the host's would be sent there in every step.
        self.register_buffer("_pose", torch.tensor(processor.action_spec.pose), persistent=False)
        self.register_buffer("_grippers", torch.tensor(grippers, dtype=torch.int64), persistent=False)
        self._trained: frozenset[str] = frozenset()
        self.origin: Path | None = None  # of frozen weights: a file that nobody can fetch again; None: there is none
        self._kept: Path | None = None  # that file, in the folder of a run

    # ---- what a type defines ---------------------------------------------------------------------------------

    @abstractmethod
    def look(self, batch: Batch) -> Prefix:
        """The prefix of a batch."""

    @abstractmethod
    def velocity(self, prefix: Prefix, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """float32 [B, H, width] at x float32 [B, H, width] and time float32 [B]."""

    # ---- acting and learning ---------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> LossTerms:
        """Mean squared errors of the velocity, over the real dimensions and the steps that are not padding."""
        return self._losses(batch, self._look(batch))

    @torch.no_grad()
    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions float32 [B, H, A] in the ActionSpec's units."""
        return self._actions(batch, self._look(batch), generator)

    @torch.no_grad()
    def losses_and_sample(self, batch: Batch) -> tuple[LossTerms, torch.Tensor]:
        prefix = self._look(batch)
        return self._losses(batch, prefix), self._actions(batch, prefix, None)

    @torch.no_grad()
    def sample_chunk(
        self,
        batch: Batch,
        start: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
        delay: int = 0,
        reach: int | None = None,
        schedule: str = "linear",
        most: float = 10.0,
    ) -> torch.Tensor:
        """Like `sample`, with real-time chunking where `previous` is given.

        start: noise float32 [B, H, width]. previous: the unexecuted rest of the previous chunk, float32 [B, R, A] in
        the ActionSpec's units. delay: how many of its actions are executed before the new chunk is there. reach: the
        step up to which the new chunk is drawn towards the rest (None: the whole rest).
        """
        guide = None
        if previous is not None:
            rest = self.action_scaler.normalize(previous.float(), batch.source)
            guide = self.guidance(rest, delay, previous.shape[1] if reach is None else reach, schedule, most)
        return self._actions(batch, self._look(batch), None, start, guide)

    def attention(self, batch: Batch) -> Attention:
        """See `ShowsAttention`: where the chunk at the end of a single step from the noise comes from."""
        return by_gradient(lambda batch: after_one_step(self._flow(batch, self.look(batch)), batch.key), batch)

    acts_by_flow = True

    def flow_distribution(self, batch: Batch, noise: float) -> FlowActions:
        """See `ActsByFlow`. Gradients go into the prefix where something of it is trained."""
        return self._flow(batch, self._look(batch), noise)

    def _flow(self, batch: Batch, prefix: Prefix, noise: float = 0.0) -> FlowActions:
        real = self.processor.action_spec.dim
        return FlowActions(
            velocity=partial(self.velocity, prefix),
            finish=lambda x: x[..., :real].float(),
            shape=(len(batch), self.processor.action_horizon, self._width),
            device=prefix.valid.device,
            real=real,
            steps=self._steps,
            noise=noise,
            counted=self.processor.action_horizon,
        )

    @property
    def follows(self) -> bool:
        return True

    def sample_following(self, batch: Batch, previous: torch.Tensor, delay: int) -> torch.Tensor:
        """See `FollowsChunks`."""
        return self.sample_chunk(batch, previous=previous, delay=delay)

    def guidance(
        self, rest: torch.Tensor, delay: int, reach: int, schedule: str = "linear", most: float = 10.0
    ) -> Guidance:
        """Guidance towards the rest of a chunk, float32 [B, R, <= width], normalised."""
        horizon, width = self.processor.action_horizon, self._width
        return Guidance.towards(rest, horizon, width, delay, reach, schedule, most)

    def _look(self, batch: Batch) -> Prefix:
        """`look`, without gradients where no part of the prefix is trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.prefix_trained):
            return self.look(batch)

    @property
    def prefix_trained(self) -> bool:
        """Whether any weight that the prefix depends on is trained."""
        return True

    def _losses(self, batch: Batch, prefix: Prefix) -> LossTerms:
        assert batch.actions is not None and batch.action_is_pad is not None
        actions, draws = pad_last(self.action_scaler.normalize(batch.actions, batch.source), self._width), self._draws
        noise, time = draw_training(tuple(actions.shape), batch.key, actions.device, self._time, draws)  # type: ignore[arg-type]
        reached, target = mix(actions.repeat_interleave(draws, 0), noise, time)
        errors = (self.velocity(prefix.repeated(draws), reached, time) - target).square()
        each = errors[..., : batch.actions.shape[-1]].unflatten(0, (len(actions), draws))
        return self.reduce(each.mean(1), batch.action_is_pad)

    def reduce(self, errors: torch.Tensor, is_pad: torch.Tensor) -> LossTerms:
        """The loss from squared errors float32 [B, H, A] of the real dimensions; is_pad: bool [B, H]."""
        spec = self.processor.action_spec
        valid = (~is_pad).float()
        n_valid = valid.sum()

        def mean(values: torch.Tensor) -> torch.Tensor:
            return (values.mean(-1) * valid).sum() / n_valid.clamp(min=1)

        terms = {"pose_loss": mean(errors[..., self._pose])}
        if spec.grippers:
            terms["gripper_loss"] = mean(errors[..., self._grippers])
        return LossTerms(mean(errors), n_valid, terms)

    def _actions(
        self,
        batch: Batch,
        prefix: Prefix,
        generator: torch.Generator | None,
        start: torch.Tensor | None = None,
        guide: Guidance | None = None,
    ) -> torch.Tensor:
        chunk = self.grow(batch, prefix, generator, start, guide)
        real = chunk[..., : self.processor.action_spec.dim]
        return self.action_scaler.denormalize(real.float(), batch.source)

    def grow(
        self,
        batch: Batch,
        prefix: Prefix,
        generator: torch.Generator | None = None,
        start: torch.Tensor | None = None,
        guide: Guidance | None = None,
    ) -> torch.Tensor:
        """The chunk float32 [B, H, width], normalised, made from noise (`start`, or drawn where that is None)."""
        device = prefix.valid.device
        if start is None:
            shape = (len(batch), self.processor.action_horizon, self._width)
            start = draw_start(shape, batch.key, generator, device)

        step = self._step_of_sampling(device)

        def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return step(prefix, x, time)

        return integrate_euler(velocity, start, self._steps, guide)

    def _step_of_sampling(self, device: torch.device) -> Callable[[Prefix, torch.Tensor, torch.Tensor], torch.Tensor]:
        """`velocity`, compiled if the config says so. Raises InputError for CUDA graphs on a device without CUDA."""
        if not self.config.compile_sampling:
            return self.velocity
        if self.config.cuda_graphs and device.type != "cuda":
            raise InputError(
                f"model.cuda_graphs is true, but the policy is on the device '{device.type}'; set it to false."
            )
        # Compile the class's function: one bound to this policy would keep its weights when the policy is copied.
        return partial(_compiled(type(self).velocity, self.config.cuda_graphs), self)

    @property
    def fit(self) -> ImageFit:
        """The way in which images are fitted."""
        assert self.processor.fit is not None
        return self.processor.fit

    # ---- inputs ----------------------------------------------------------------------------------------------

    def pictures(self, batch: Batch) -> list[torch.Tensor]:
        """The images of each slot with a camera, float32 [B, 3, height, width] in [-1, 1], in the slots' order."""
        fitted = self.fit(batch.unit_images())
        return [fitted[:, view] * 2 - 1 for view in self.slots.views]

    def picture_tokens(self, batch: Batch) -> list[torch.Tensor]:
        """The tokens [B, N, width] of each slot with a camera, in the slots' order, from its images or, where the batch
        has cached features, from those."""
        if batch.features is None:
            return [self.network.project(self.network.see(pictures)) for pictures in self.pictures(batch)]
        views = batch.features.unflatten(1, (len(self.processor.cameras), -1))
        return [look_on(self.network, self._frozen_sight, views[:, view]) for view in self.slots.views]

    @property
    def _frozen_sight(self) -> tuple[str, ...]:
        return frozen_sight(self.network, {name.removeprefix("network.") for name in self._trained})

    def image_features(self, batch: Batch) -> torch.Tensor:
        """See `ShowsFeatures`: the mean of a sample's image tokens."""
        return torch.cat(self.picture_tokens(batch), dim=1).float().mean(1)

    def cached_encoder_hash(self) -> str:
        """See `ReadsFeatures`."""
        return weights_hash(sight_weights(self.network, self._frozen_sight))

    def empty_picture(self, device: torch.device) -> torch.Tensor:
        """The image of a missing camera: float32 [1, 3, height, width], all -1."""
        return torch.full((1, 3, self.fit.height, self.fit.width), -1.0, device=device)

    def words(self, texts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids int64 [B, L], and which of them are words, bool [B, L]."""
        if self._tokenizer is None:  # only shapes are needed
            step = self.description.files.tokenizer
            shape = len(texts), step.max_length if step is not None else 48
            return torch.zeros(shape, dtype=torch.int64, device=device), torch.ones(
                shape, dtype=torch.bool, device=device
            )
        ids, valid = send(torch.stack(self._tokenizer(texts)), device)  # as integers: one copy
        return ids, valid.bool()

    # ---- saving and loading ----------------------------------------------------------------------------------

    def _hold_trained(self) -> None:
        """Remember which weights are trained now: these will be saved. Call it once the network has its weights."""
        self._trained = frozenset(name for name, p in self.named_parameters() if p.requires_grad)

    @property
    def frozen(self) -> dict[str, FrozenWeights]:
        held = [(name, p) for name, p in self.named_parameters() if name not in self._trained]
        if not held or self.config.weights == "random" or any(p.is_meta for _, p in held):
            return {}
        if not hasattr(self, "_frozen_hash"):
            self._frozen_hash = weights_hash(held)
        return {BACKBONE: FrozenWeights(self.config.pretrained, self._frozen_hash)}

    @property
    def frozen_names(self) -> list[str]:
        """The names of the parameters that are not trained."""
        return [name for name, _ in self.named_parameters() if name not in self._trained]

    def is_own(self, name: str) -> bool:
        return self.config.weights == "random" or name in self._trained

    def load_weights(self, path: Path) -> None:
        """Like `Policy.load_weights`, but one tensor at a time: a whole pi0 has 13 GB."""
        own = self.own_state_dict()
        with TensorFile(path) as file:
            try:
                frozen = frozen_named(file.metadata)
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"{path} does not record the frozen parts it was trained with ({error}).") from None
            check_frozen(path, frozen, self.frozen)
            forms = {n: torch.empty(t.shape, dtype=t.dtype, device="meta") for n, t in file.tensors.items()}
            check_forms(path, forms, own)
            for name, mine in own.items():
                mine.copy_(_finite(file, name))

    def save_frozen(self, part: str, directory: Path) -> None:
        (directory / "frozen").mkdir(parents=True, exist_ok=True)
        held = {plain_name(name): p for name, p in self.named_parameters() if name not in self._trained}
        with atomic_path(directory / "frozen" / BACKBONE_FILE) as partial:
            save_tensors(partial, held, {"format": "pt"})

    def save_pretrained(
        self, directory: str | Path, full: bool = False, weights: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Like `Policy.save_pretrained`, and adds the folder `lerobot` with the other files of LeRobot's folder, and a
        link to the weights that were kept, see `keep_origin`."""
        super().save_pretrained(directory, full, weights)
        description = Path(directory) / DESCRIPTION
        self.save_description(description)
        if self._kept is not None and not full and not (description / WEIGHTS).exists():
            link_or_copy(self._kept, description / WEIGHTS)

    def keep_origin(self, run_dir: Path) -> None:
        """See `Policy.keep_origin`: one file for all of a run's checkpoints, and the folder's own where the file system
        has hard links."""
        if self.origin is None:
            return
        self._kept = run_dir / "pretrained" / WEIGHTS
        if not self._kept.exists():
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._kept) as unfinished:
                unfinished.unlink()
                link_or_copy(self.origin, unfinished)

    def save_description(self, folder: Path) -> None:
        """Write config.json, processor files and tokenizer, from which loading builds the policy."""
        from atlas.policies.published.lerobot_export import write_description

        write_description(self, folder)

    # ---- export to LeRobot -----------------------------------------------------------------------------------

    lerobot_steps: ClassVar[tuple[str, ...]]  # the preprocessor's, in order

    @property
    def tokenizer_step(self) -> TokenizerStep:
        """The step in which instructions become token ids."""
        assert self._tokenizer is not None, "a policy that has only shapes has no tokenizer"
        return self._tokenizer.step

    def lerobot_options(self) -> Mapping[str, Any]:
        """The settings of config.json that the type's section changes."""
        return {}

    def extra_files(self) -> Mapping[str, Any]:
        """{name: JSON} of further files, such as sizes that config.json does not hold."""
        return {}

    def published_origin(self) -> Mapping[str, Any]:
        """See `HasOrigin`."""
        from atlas.policies.published.lerobot_card import origin_of

        return origin_of(self)

    def export_lerobot(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write a folder that LeRobot loads. facts: about the training, for the model card."""
        from atlas.policies.published.lerobot_export import export_lerobot

        export_lerobot(self, folder, facts)

    def named_for_lerobot(self) -> dict[str, torch.Tensor]:
        """All weights under LeRobot's names."""
        return {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}

    @property
    def prompt_tokenizer(self) -> PromptTokenizer | None:
        return self._tokenizer


@cache
def _compiled(velocity: Callable[..., torch.Tensor], graphs: bool) -> Callable[..., torch.Tensor]:
    return torch.compile(velocity, dynamic=False, mode="reduce-overhead" if graphs else None)


def _finite(file: TensorFile, name: str) -> torch.Tensor:
    values = file.read(name)
    if not is_finite(values):
        raise InputError(f"{file.path} does not fit the policy's config: '{name}' holds values that are not finite.")
    return values


def pad_last(values: torch.Tensor, width: int) -> torch.Tensor:
    """Pad the last dimension with zeros up to `width`."""
    return F.pad(values, (0, width - values.shape[-1]))
