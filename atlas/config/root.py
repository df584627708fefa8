"""The whole config, and what its sections must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from atlas.config.data_sections import DataConfig
from atlas.config.experience_sections import LearningConfig
from atlas.config.model_section import MODEL, ModelConfig
from atlas.config.section import Section, UserPath
from atlas.config.tracking_sections import LoggingConfig, ModelManagementConfig, WandbConfig
from atlas.config.training_sections import (
    CheckpointConfig,
    DistributedConfig,
    EvaluationConfig,
    TrainingConfig,
    three_quarters,
)
from atlas.system.paths import unfit


class Config(Section):
    run_name: str | None = None  # null: made of the dataset, the policy, the learning rate and the time
    output_dir: UserPath = "outputs"
    seed: Annotated[int, Field(ge=0, lt=10**6)] = 0
    data: DataConfig = DataConfig()
    model: Annotated[ModelConfig, MODEL] = Field(default_factory=dict)  # type: ignore[assignment]  # validated, too
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    learning: LearningConfig = LearningConfig()
    logging: LoggingConfig = LoggingConfig()
    wandb: WandbConfig = WandbConfig()
    model_management: ModelManagementConfig = ModelManagementConfig()
    distributed: DistributedConfig = DistributedConfig()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        """Return the values that a policy's type gives to keys of `training` that the config does not have."""
        if not isinstance(values, Mapping):
            return values
        model, training = values.get("model", {}), values.get("training", {})
        kind = MODEL.kind(model) if isinstance(model, Mapping) else type(model)
        if isinstance(training, Mapping) and isinstance(kind, type) and issubclass(kind, ModelConfig):
            return {**values, "training": {**kind.training_preset(), **training}}
        return values

    @model_validator(mode="before")
    @classmethod
    def _usual_execute(cls, values: Any) -> Any:
        """Return the values with `evaluation.execute`, where it is null or missing: three quarters of the chunk."""
        if not isinstance(values, Mapping):
            return values
        data, evaluation = values.get("data", {}), values.get("evaluation", {})
        if (
            not isinstance(data, Mapping)
            or not isinstance(evaluation, Mapping)
            or evaluation.get("execute") is not None
        ):
            return values
        horizon = data.get("action_horizon", DataConfig.model_fields["action_horizon"].default)
        execute = three_quarters(horizon) if isinstance(horizon, int) else 1  # a wrong horizon is refused by itself
        return {**values, "evaluation": {**evaluation, "execute": execute}}

    @property
    def run_dir(self) -> Path:
        """The folder of a run whose name has been settled."""
        assert self.run_name is not None
        return Path(self.output_dir) / self.run_name

    @model_validator(mode="after")
    def _agree(self) -> Config:
        if self.evaluation.execute > self.data.action_horizon:
            raise ValueError(
                f"evaluation.execute is {self.evaluation.execute}, but data.action_horizon is "
                f"{self.data.action_horizon}; at most the predicted actions can be executed"
            )
        self.model.check_data(self.data)
        if self.data.history.steps > 1 and not self.model.takes_history:
            raise ValueError(
                f"data.history.steps is {self.data.history.steps}, but a policy of the type {self.model.type} looks at "
                "one frame; leave data.history out"
            )
        if self.model.processor.relative_actions and not self.model.takes_relative_actions:
            raise ValueError(
                f"model.processor.relative_actions is true, but a policy of the type {self.model.type} learns actions "
                "as they are; leave it out"
            )
        if self.model.processor.proprio_margin is not None and not self.model.clips_proprio:
            raise ValueError(
                f"model.processor.proprio_margin is set, but a policy of the type {self.model.type} scales proprio as "
                "it says itself; leave it out"
            )
        name = self.run_name
        if name is not None and (name.startswith(".") or "/" in name or unfit(name)):
            raise ValueError(f"run_name {name!r} must be usable as a folder's name")
        return self
