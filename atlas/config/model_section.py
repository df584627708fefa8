"""`model`: what every policy's section has, whatever its type, and the table of the types.

Another package adds a type of its own in the group `atlas.policies`: a section derived from ModelConfig, with a name as
the default of its `type`, whose `build` gives a `Policy` (atlas/policies/base.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atlas.config.chosen_section import Chosen
from atlas.config.data_sections import DataConfig
from atlas.config.section import Section
from atlas.system.plugins import PluginTable

if TYPE_CHECKING:
    from atlas.types import ActionSpec


class ProcessorConfig(Section):
    """How actions and proprio are scaled for the network, from the training episodes' statistics."""

    action_normalization: Literal["quantiles", "mean_std", "min_max"] = "quantiles"
    proprio_normalization: Literal["quantiles", "mean_std", "min_max"] = "mean_std"


class ModelConfig(Section):
    """The section of a policy: builds it, and says before that what it needs. It is saved with the policy.

    `build` is the one thing that a type must have; of the rest it says what is not true of it.
    """

    type: str
    processor: ProcessorConfig = ProcessorConfig()

    def build(self, processor: Any, folder: Path | None = None, read_weights: bool = True) -> Any:
        """The Policy, with weights as training begins with them, for a PolicyProcessor.

        folder: of a saved policy; copies of pretrained weights in it go before where the section says. Without
        read_weights nothing pretrained is read, for what needs shapes only. Raises InputError.
        """
        raise NotImplementedError(f"{type(self).__name__} has no build")

    @property
    def label(self) -> str:
        """A word for the names of runs."""
        return self.type

    def describe(self) -> str:
        """What the policy consists of, in a phrase of Markdown, for its card."""
        return f"type `{self.type}`"

    def loss_terms(self, spec: ActionSpec) -> tuple[str, ...]:
        """The names of the terms of its loss beside the loss itself, where it is trained on such actions."""
        return ()

    def check_data(self, data: DataConfig) -> None:
        """Raises ValueError, in the words of the config, where the two do not go together."""

    def check_pretrained(self) -> None:
        """Find what is needed of pretrained weights, download what is missing, and see that it fits.

        Before a run is begun, and once for all its processes. Names and shapes only: weights are read, and hashed, when
        the policy is built. Raises InputError that names the key of the config.
        """

    @property
    def cached_encoder(self) -> Any:
        """The `CachedEncoder` whose outputs `data.feature_cache` may hold; None where no part's stay the same while
        training. See atlas/policies/feature_cache_filling.py."""
        return None

    @property
    def compiling_key(self) -> str | None:
        """The setting by which it has parts of it compiled by torch.compile, whatever training says."""
        return None

    def memory_advice(self) -> Sequence[str]:
        """What to set, and why, where a GPU's memory is not enough; the cheapest first."""
        return ()


MODEL = Chosen(
    PluginTable("atlas.policies", {"modular": "atlas.policies.modular.modular_section:ModularConfig"}),
    ModelConfig,
    key="type",
    default="modular",
)
