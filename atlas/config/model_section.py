"""`model`: what every policy's section has, whatever its type, and the table of types.

Another package adds a type in the group `atlas.policies`: a section derived from ModelConfig, with the type's name as
the default of its `type`, whose `build` gives a `Policy` (atlas/policies/base.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from atlas.config.action_sections import OtherForm
from atlas.config.chosen_section import Chosen
from atlas.config.data_sections import DataConfig
from atlas.config.section import Section
from atlas.system.plugins import PluginTable
from atlas.types import RotationForm

if TYPE_CHECKING:
    from atlas.types import ActionSpec


class ProcessorConfig(Section):
    """The scaling of actions and proprio for the network, from the training episodes' statistics."""

    action_normalization: Literal["quantiles", "mean_std", "min_max"] = "quantiles"
    proprio_normalization: Literal["quantiles", "mean_std", "min_max"] = "mean_std"
    # Learn targets relative to the state at the chunk's start; what is sampled is absolute again
    relative_actions: bool = False
    # The proprio's dimensions that say where the targets' numbers are, in the actions' order; null: told by names
    relative_to: list[Annotated[int, Field(ge=0)]] | None = None
    relative_rotation: RotationForm | OtherForm | None = None  # of rotations in the proprio; null: as in the actions
    # Proprio farther outside the range of its statistics than so many times that range is clipped; null: none is
    proprio_margin: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> ProcessorConfig:
        for key in ("relative_to", "relative_rotation"):
            if getattr(self, key) is not None and not self.relative_actions:
                raise ValueError(f"{key} is set, but relative_actions is false; set both, or leave {key} out")
        return self


class ModelConfig(Section):
    """The section of a policy: it builds the policy, and knows beforehand what that needs. It is saved with the policy.

    A type must define `build`; it overrides the other methods where their defaults are wrong for it.
    """

    type: str
    processor: ProcessorConfig = ProcessorConfig()
    # Whether its Policy looks at `processor.views` pictures and `processor.proprio_width` numbers (data.history), and
    # gives actions through `processor.to_learn` and `processor.to_execute` (relative_actions).
    takes_history: ClassVar[bool] = False
    takes_relative_actions: ClassVar[bool] = False
    # Whether its Policy scales proprio by `processor.proprio_scaler` (proprio_margin).
    clips_proprio: ClassVar[bool] = False
    # Whether `build` takes a `device` too, and brings each weight there as it is read: the host then never holds the
    # whole policy, which may be larger than its memory.
    builds_on_device: ClassVar[bool] = False

    def build(self, processor: Any, folder: Path | None = None, read_weights: bool = True) -> Any:
        """The Policy for a PolicyProcessor, with the weights that training starts from.

        folder: of a saved policy; copies of pretrained weights in it take precedence over what the section names.
        Without read_weights nothing pretrained is read, for callers that only need shapes. Raises InputError.
        """
        raise NotImplementedError(f"{type(self).__name__} has no build")

    @property
    def label(self) -> str:
        """A word for names of runs."""
        return self.type

    def describe(self) -> str:
        """Describe what the policy consists of, as a phrase of Markdown for its card."""
        return f"type `{self.type}`"

    def loss_terms(self, spec: ActionSpec) -> tuple[str, ...]:
        """The names of the terms of its loss, apart from the loss itself, for such actions."""
        return ()

    def check_data(self, data: DataConfig) -> None:
        """Raises ValueError, in the config's terms, if the policy and the data do not fit together."""

    @property
    def reads_images(self) -> bool:
        """Whether it looks at images; otherwise no camera of the data is read."""
        return True

    # Of the next three, folder is that of a saved policy with which training begins or goes on. What it holds itself is
    # not asked for elsewhere.

    def image_fit(self, folder: Path | None = None) -> Any:
        """The `ImageFit` with which it fits whole pictures itself (atlas/data/image_fit.py); None: it gets squares of
        `data.image_size`. Raises InputError if a file that says so is missing."""
        return None

    @classmethod
    def training_preset(cls) -> Mapping[str, Any]:
        """Settings of `training` that apply if the config does not set them."""
        return {}

    def check_pretrained(self, folder: Path | None = None) -> None:
        """Find the pretrained weights that are needed, download what is missing, and check that they fit.

        Called before a run starts, once for all its processes. It checks names and shapes only: weights are read, and
        hashed, when the policy is built. Raises InputError that names the key of the config.
        """

    def check_dataset(
        self, cameras: Sequence[str], spec: ActionSpec, proprio_dim: int, folder: Path | None = None
    ) -> None:
        """See that a policy begun as the section says takes such data: after `check_pretrained`, before a run is begun.
        Raises InputError."""

    @property
    def cached_encoder(self) -> Any:
        """The `CachedEncoder` whose outputs `data.feature_cache` may hold; None if no part's outputs stay the same
        during training. See atlas/policies/feature_cache_filling.py."""
        return None

    @property
    def compiling_key(self) -> str | None:
        """The setting that makes it compile parts of itself with torch.compile, whatever `training` says."""
        return None

    def memory_advice(self) -> Sequence[str]:
        """Say what to set, and why, if a GPU's memory is too small; the cheapest measure first."""
        return ()


MODEL = Chosen(
    PluginTable(
        "atlas.policies",
        {
            "modular": "atlas.policies.modular.modular_section:ModularConfig",
            "pi0": "atlas.policies.pi.pi_section:Pi0Config",
            "pi05": "atlas.policies.pi.pi_section:Pi05Config",
            "residual": "atlas.policies.residual.residual_section:ResidualConfig",
            "smolvla": "atlas.policies.smolvla.smolvla_section:SmolVLAConfig",
            "vlm": "atlas.policies.vlm.vlm_section:VLMConfig",
        },
    ),
    ModelConfig,
    key="type",
    default="modular",
)
