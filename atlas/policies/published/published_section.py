"""The common part of the `model` sections of types that start from published weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from atlas.config.model_section import ModelConfig, ProcessorConfig
from atlas.config.section import Size
from atlas.registry.lerobot_policies import WEIGHTS
from atlas.registry.references import kind_of

if TYPE_CHECKING:
    import torch

    from atlas.policies.base import Policy
    from atlas.policies.processor import PolicyProcessor
    from atlas.types import ActionSpec

KEY = "model.pretrained"
DESCRIPTION = "lerobot"  # the folder, in a saved policy, with LeRobot's files other than weights


class PublishedConfig(ModelConfig):
    """LeRobot's folder describes the policy; the section says where that is, and what to change."""

    builds_on_device = True
    pretrained: str  # hf:owner/name, or a folder of LeRobot's form
    # random: the folder describes the network, and its weights are drawn at random
    weights: Literal["pretrained", "random"] = "pretrained"
    # {the weights' name: the data's}; null: by name
    cameras: Annotated[dict[str, str], Field(min_length=1)] | None = None
    tokenizer: str | None = None  # a folder, or a model of the hub; null: that of the processor files
    # The statistics that scale state and action. checkpoint: the folder's; dataset: the training episodes'; auto: the
    # folder's where they can be used, otherwise the episodes', with a warning
    statistics: Literal["auto", "checkpoint", "dataset"] = "auto"
    # Noises and times for each sample of a training batch: the prefix is computed once for all of them, and the
    # gradient varies less
    noise_draws: Annotated[int, Field(ge=1, le=64)] = 1
    sampling_steps: Size | None = None  # of Euler's method; null: as in config.json
    compile_sampling: bool = False  # compile the expert's step with torch.compile, once per batch size
    cuda_graphs: bool = False  # and record it as CUDA graphs, on GPUs
    precision: Literal["stored", "float32", "bfloat16"] = "stored"  # of frozen weights; trained ones are float32

    @model_validator(mode="after")
    def _scaled_as_published(self) -> PublishedConfig:
        if self.processor != ProcessorConfig():
            raise ValueError(
                f"processor cannot be set for the type {self.type}; its config.json says how numbers are scaled"
            )
        return self

    @model_validator(mode="after")
    def _graphs_of_what_is_compiled(self) -> PublishedConfig:
        if self.cuda_graphs and not self.compile_sampling:
            raise ValueError("cuda_graphs is true, but compile_sampling is false; set both, or neither")
        return self

    @property
    def label(self) -> str:
        return self.type

    @property
    def compiling_key(self) -> str | None:
        return "model.compile_sampling" if self.compile_sampling else None

    def describe(self) -> str:
        return f"type `{self.type}`, from `{self.pretrained}`"

    def loss_terms(self, spec: ActionSpec) -> tuple[str, ...]:
        return "pose_loss", *(("gripper_loss",) if spec.grippers else ())

    @property
    def cached_encoder(self) -> Any:
        """The frozen part of its vision. Raises InputError where none is frozen."""
        from atlas.policies.published.picture_features import CachedSight

        return CachedSight(self, self._loading().open_sight)

    @property
    def how_vision_stays(self) -> str:
        """Say how to freeze its vision tower, for messages."""
        return "set model.freeze_vision_encoder or model.train_expert_only to true, or leave data.feature_cache out"

    def find(self, folder: Path | None = None, weights: bool = True) -> Path:
        """The folder that describes the policy: a saved policy's, or LeRobot's. Raises InputError."""
        from atlas.policies.published.lerobot_folder import find_lerobot

        if folder is not None and (folder / DESCRIPTION).is_dir():
            return folder / DESCRIPTION
        return find_lerobot(self.pretrained, KEY, weights and self.weights == "pretrained")

    def weights_file(self, folder: Path | None = None) -> Path:
        """The file with a saved policy's frozen weights: its folder's own, or LeRobot's. Raises InputError."""
        kept = None if folder is None else folder / DESCRIPTION / WEIGHTS
        return kept if kept is not None and kept.is_file() else self.find() / WEIGHTS

    def local_weights(self, folder: Path | None = None) -> Path | None:
        """The same file if it is on this machine and cannot be fetched again; otherwise None."""
        places = [] if folder is None else [folder / DESCRIPTION]
        if kind_of(self.pretrained) == "folder":
            places.append(Path(self.pretrained).expanduser())
        return next((place / WEIGHTS for place in places if (place / WEIGHTS).is_file()), None)

    # ---- done by the type's own module, which imports torch -----------------------------------------------

    def _loading(self) -> Any:
        """The type's module with read_description, fit_of, build, of_lerobot, check, check_dataset and open_sight."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is loaded")

    def build(
        self,
        processor: PolicyProcessor,
        folder: Path | None = None,
        read_weights: bool = True,
        device: torch.device | None = None,
    ) -> Policy:
        """device: where the weights go, one by one, as they are read; random weights stay on the CPU."""
        policy = self._loading().build(self, processor, folder, read_weights, device or "cpu")
        if read_weights and self.weights == "pretrained" and policy.frozen_names:
            policy.origin = self.local_weights(folder)
        return cast("Policy", policy)

    def of_lerobot(self, directory: Path, device: torch.device | None = None) -> Policy:
        """The policy in a LeRobot folder, unchanged, in eval mode. device: see `build`. Raises InputError."""
        return cast("Policy", self._loading().of_lerobot(self, directory, device or "cpu"))

    def image_fit(self, folder: Path | None = None) -> Any:
        loading = self._loading()
        return loading.fit_of(loading.read_description(self, folder, read_weights=False))

    def check_pretrained(self, folder: Path | None = None) -> None:
        self._loading().check(self, folder)

    def check_dataset(
        self, cameras: Sequence[str], spec: ActionSpec, proprio_dim: int, folder: Path | None = None
    ) -> None:
        self._loading().check_dataset(self, cameras, spec, proprio_dim, folder)
