"""`logging`, `wandb` and `model_management`: what is recorded of a run, and where."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from atlas.config.section import NotNegative, Positive, Section

# ---- logging ---------------------------------------------------------------------------------------------


class GradientLoggerConfig(Section):
    """Histograms of gradients and weights, and gradient norms, of each module."""

    interval: NotNegative = 500  # optimizer steps; 0: off


class PlotLoggerConfig(Section):
    """Predicted and recorded action chunks in figures and camera views, and a table of the worst samples."""

    interval: NotNegative = 500  # optimizer steps, at the next validation; 0: off
    samples: Positive = 4  # the number drawn, the same ones each time
    worst: Positive = 8  # rows of the table


class ActionLoggerConfig(Section):
    """Distributions of predicted and recorded actions, and the gripper's probability along an episode.

    `action_logger: q_value` is short for {along_episodes: [q_value]}.
    """

    interval: NotNegative = 500  # optimizer steps, at the next validation; 0: off
    # What `atlas learn` draws into the films of its evaluations, where it has such: what a decision is worth and what
    # that should be; how likely the action is
    along_episodes: list[Literal["q_value", "action_probability"]] = ["q_value", "action_probability"]

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, values: Any) -> Any:
        if isinstance(values, str):
            return {"along_episodes": [values]}
        return {"along_episodes": values} if isinstance(values, list) else values


class EpisodeLoggerConfig(Section):
    """Distributions of returns and lengths of evaluation episodes, and films of the best, median and worst."""

    interval: NotNegative = 1  # evaluations; 0: off


class VisDatasetConfig(Section):
    """A two-dimensional map of the dataset: the features that the policy's vision computes for its frames."""

    interval: NotNegative = 500  # optimizer steps, at the next validation; 0: off
    frames: Annotated[int, Field(ge=10)] = 400
    method: Literal["pca", "tsne"] = "pca"  # tsne: through scikit-learn, pip install 'atlas-vla[vis]'


class MediaConfig(Section):
    """Records other than scalars, each in both TensorBoard and wandb."""

    gradient_logger: GradientLoggerConfig = GradientLoggerConfig()
    plot_logger: PlotLoggerConfig = PlotLoggerConfig()
    action_logger: ActionLoggerConfig = ActionLoggerConfig()
    episode_logger: EpisodeLoggerConfig = EpisodeLoggerConfig()
    vis_dataset: VisDatasetConfig = VisDatasetConfig()


class LoggingConfig(Section):
    exit_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0  # how long trackers may delay the exit at most
    system_interval_seconds: Annotated[float, Field(ge=0)] = 15.0  # between samples of system/*; 0: off
    media: MediaConfig = MediaConfig()


# ---- wandb -----------------------------------------------------------------------------------------------


class WandbConfig(Section):
    enabled: bool = False
    project: str | None = None  # null: $WANDB_PROJECT, otherwise atlas-vla
    entity: str | None = None  # null: $WANDB_ENTITY, otherwise the user's own
    name: str | None = None  # null: $WANDB_NAME, otherwise run_name
    tags: list[str] = []  # none: $WANDB_TAGS
    notes: str | None = None  # null: $WANDB_NOTES
    save_code: bool = False
    resume: Literal["allow", "must", "never", "auto"] = "allow"
    rewind: bool = False  # on resuming from a checkpoint: cut off what wandb has beyond it
    mode: Literal["online", "offline", "disabled"] = "online"
    group: str | None = None  # null: $WANDB_RUN_GROUP
    system_stats: bool = True
    shared: bool = False  # with several nodes: each adds its own system metrics to the same run


# ---- models ----------------------------------------------------------------------------------------------


class Bounds(Section):
    """The range that a metric must lie in."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("neither min nor max is set; write for example {max: 0.05}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; no value satisfies both")
        return self


# The short forms of upload_conditions, and what they mean.
_SHORT_CONDITIONS = {"min_success_rate": "eval/success_rate", "min_reward_threshold": "eval/mean_reward"}
_ARTIFACT_ALIAS = re.compile(r"[^/:]+")
_OWN_ALIASES = re.compile(r"latest|best|step-\d+|v\d+")


def rises(metric: str) -> bool:
    """Whether larger values of a metric are better, judged by its name; this is what the mode `auto` uses."""
    return any(part in metric for part in ("success", "accuracy", "reward"))


class ModelManagementConfig(Section):
    """Checkpoints as versioned artifacts in wandb, and how the best of them is chosen."""

    upload_frequency: NotNegative = 1  # every Nth checkpoint; 0: none but the best
    save_best_models: bool = True  # upload each new best one, whatever upload_frequency says
    # auto: eval/success_rate if there are rollouts, eval/mean_reward if their world does not report success, otherwise
    # val/loss
    best_model_metric: str = "auto"
    best_model_mode: Literal["auto", "max", "min"] = "auto"
    # {metric: {min: …, max: …}}; only checkpoints that meet all of them are uploaded. min_success_rate: 0.8 and
    # min_reward_threshold: 0.5 are short for a min of eval/success_rate and eval/mean_reward.
    upload_conditions: dict[str, Bounds] = {}
    keep_last_n: Positive = 3  # versions, in addition to the best one and those with an alias set by somebody
    aliases: list[str] = []  # for every uploaded model, in addition to latest, step-N and best
    registry: str | None = None  # REGISTRY/COLLECTION that uploaded models are linked to

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, values: Any) -> Any:
        conditions = values.get("upload_conditions") if isinstance(values, dict) else None
        if not isinstance(conditions, dict):
            return values
        spelled: dict[str, Any] = {}
        for name, bounds in conditions.items():
            if name in _SHORT_CONDITIONS:
                metric = _SHORT_CONDITIONS[name]
                if metric in conditions:
                    raise ValueError(f"upload_conditions has {name} and {metric}, which mean the same; keep one")
                spelled[metric] = {"min": bounds}
            else:
                spelled[name] = bounds
        return {**values, "upload_conditions": spelled}

    @model_validator(mode="after")
    def _usable(self) -> ModelManagementConfig:
        for name in self.upload_conditions:
            if "/" not in name:
                known = ", ".join(_SHORT_CONDITIONS)
                raise ValueError(f"upload_conditions: '{name}' is no metric such as val/pose_l2_error, nor {known}")
        for alias in self.aliases:
            if not _ARTIFACT_ALIAS.fullmatch(alias):
                raise ValueError(f"aliases: '{alias}' contains / or :, which an alias must not")
            if _OWN_ALIASES.fullmatch(alias):
                raise ValueError(f"aliases: '{alias}' is set automatically where it applies; leave it out")
        if self.registry is not None and not re.fullmatch(r"[^/:]+/[^/:]+", self.registry):
            raise ValueError(f"registry is '{self.registry}'; it should be REGISTRY/COLLECTION, such as models/cubes")
        return self
