"""`training`, `checkpoint`, `evaluation` and `distributed`: how it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from atlas.config.section import NotNegative, Positive, Section, Weight


class TrainingConfig(Section):
    max_steps: Positive | None = 4000  # optimizer steps; or num_epochs
    num_epochs: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Weight = 0.01
    warmup_steps: NotNegative = 100
    gradient_accumulation_steps: Positive = 1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on GPUs that have it, else fp32
    log_interval: Positive = 50
    val_interval: Positive = 500
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995  # 0: no averaging of the weights

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.max_steps is None) == (self.num_epochs is None):
            state = "neither is set" if self.max_steps is None else "both are set"
            raise ValueError(f"max_steps and num_epochs: {state}; set one, and the other to null")
        return self


class CheckpointConfig(Section):
    save_interval: Positive = 1300
    keep_last_n: Positive = 3  # besides the best one


class EvaluationConfig(Section):
    """Closed-loop episodes in a simulator: during training (to choose the best checkpoint) and at the end."""

    env: str = "auto"  # auto: the world that the data was recorded in, where there is an adapter for it; none
    seed: Annotated[int, Field(ge=0, lt=10**6)] = 0  # of the episodes: runs with the same one can be compared as pairs
    episodes: NotNegative = 20  # at each evaluation during training; 0: no rollouts
    interval: Positive = 1300  # optimizer steps
    final_episodes: NotNegative = 40  # of the best checkpoint, after training
    video: NotNegative = 4  # episodes filmed in the final evaluation
    record_path: str | None = None  # a folder for films of evaluations; null: videos/ in the run's folder
    execute: Positive = 4  # actions of each predicted chunk that are executed
    ensemble: Annotated[float, Field(ge=0)] | None = None  # temporal ensembling's weight; null: off
    workers: Positive | None = None  # environment processes a rank; null: one a core


class DistributedConfig(Section):
    mode: Literal["auto", "single", "multi"] = "auto"  # auto: all visible GPUs, or one CPU process
    gpus: Positive | None = None  # processes; with cpu: true, CPU processes
    gpu_ids: list[NotNegative] | None = None
    cpu: bool = False

    @model_validator(mode="after")
    def _no_contradiction(self) -> DistributedConfig:
        if self.mode == "single" and (self.gpus or 1) > 1:
            raise ValueError(f"mode is 'single' and gpus is {self.gpus}; use mode 'multi', or gpus 1")
        if self.cpu and self.gpu_ids:
            raise ValueError("cpu is true and gpu_ids are given; set one of them")
        if self.gpu_ids is not None and self.gpus is not None and len(self.gpu_ids) != self.gpus:
            raise ValueError(f"gpus is {self.gpus} and gpu_ids names {len(self.gpu_ids)}; give one, or make them agree")
        return self
