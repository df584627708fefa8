"""`training`, `checkpoint`, `evaluation` and `distributed`: how it is trained."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, model_validator

from atlas.config.section import NotNegative, Positive, Section, UserPath, Weight


class EarlyStoppingConfig(Section):
    """End before max_steps, when a metric has not improved for `patience` of its values."""

    metric: Annotated[str, Field(pattern="^(val|eval)/")]
    mode: Literal["auto", "max", "min"] = "auto"  # auto: by the metric's name
    patience: Positive = 5
    min_delta: Weight = 0.0  # an improvement by less counts as none


class ProfileConfig(Section):
    """Trace some steps: what ran when, on the CPU and the GPU."""

    start: NotNegative = 20  # optimizer steps of this process before the first one traced
    steps: Positive = 3


class TrainingConfig(Section):
    max_steps: Positive | None = 2000  # optimizer steps; or num_epochs
    num_epochs: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Weight = 0.01
    warmup_steps: NotNegative = 100
    gradient_accumulation_steps: Positive = 1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on GPUs that have it, else fp32
    log_interval: Positive = 50
    val_interval: Positive = 500
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995  # 0: no averaging of the weights
    max_skipped_steps: Positive = 10  # in a row, for a loss or gradient that is not finite; then training stops
    early_stopping: EarlyStoppingConfig | None = None
    activation_checkpointing: bool = False  # compute activations twice instead of keeping them: less memory
    compile: bool = False  # the policy's blocks, by torch.compile
    fused_optimizer: bool = True
    # The learning rate of a run that goes on with another number of steps. keep: as it was, and at its lowest after the
    # steps that it was made for; stretch: that of the new number, which makes it jump.
    schedule_on_resume: Literal["keep", "stretch"] = "keep"
    # same: a run goes on with the episodes that it began with, in files of any names; changed: others may have come or
    # gone. Those that it knows stay for training or for validation as they were.
    data_on_resume: Literal["same", "changed"] = "same"
    tf32: bool = True  # for float32 matrix products on GPUs: faster, with 10 bits of mantissa
    profile: ProfileConfig | None = None

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.max_steps is None) == (self.num_epochs is None):
            state = "neither is set" if self.max_steps is None else "both are set"
            raise ValueError(f"max_steps and num_epochs: {state}; set one, and the other to null")
        return self


class CheckpointConfig(Section):
    save_interval: Positive = 1000
    keep_last_n: Positive = 3  # besides those of the next two
    keep_best: Positive = 1  # the best ones by model_management.best_model_metric
    keep_every_n_steps: Positive | None = None  # and each whose step is a multiple of it


class EvaluationConfig(Section):
    """Closed-loop episodes in a simulator: during training (to choose the best checkpoint) and at the end."""

    env: str = "auto"  # auto: the world that the data was recorded in, where there is an adapter for it; none
    seed: Annotated[int, Field(ge=0, lt=10**6)] = 0  # of the episodes: runs with the same one can be compared as pairs
    episodes: NotNegative = 20  # at each evaluation during training; 0: no rollouts
    interval: Positive = 1000  # optimizer steps
    final_episodes: NotNegative = 40  # of the best checkpoint, after training
    video: NotNegative = 4  # episodes filmed in the final evaluation
    record_path: UserPath | None = None  # a folder for films of evaluations; null: videos/ in the run's folder
    execute: Positive = 4  # actions of each predicted chunk that are executed
    ensemble: Annotated[float, Field(ge=0)] | None = None  # temporal ensembling's weight; null: off
    workers: Positive | None = None  # environment processes a rank; null: one a core, up to 16


class DistributedConfig(Section):
    mode: Literal["auto", "single", "multi"] = "auto"  # auto: all visible GPUs, or one CPU process
    gpus: Positive | None = None  # processes; with cpu: true, CPU processes
    gpu_ids: list[NotNegative] | None = None
    cpu: bool = False
    # ddp: every process has the whole policy; fsdp: weights, gradients and optimizer state are spread over them.
    strategy: Literal["ddp", "fsdp"] = "ddp"
    timeout_minutes: Annotated[float, Field(gt=0)] = 30.0  # in which one process does nothing: it has hung
    num_nodes: Positive | None = None  # machines; null: SLURM's number, else 1
    node_rank: NotNegative | None = None  # which of them this is; null: SLURM's number, else 0
    master_addr: str | None = None  # the first one's address; null: SLURM's first node
    master_port: Annotated[int, Field(ge=1024, le=65535)] = 29500  # a free one there

    @property
    def group_timeout(self) -> timedelta:
        """How long processes wait for one that does not come: longer than the watch over hangs, which first shows where
        each of them is."""
        return timedelta(minutes=self.timeout_minutes + 1)

    @model_validator(mode="after")
    def _no_contradiction(self) -> DistributedConfig:
        if self.mode == "single" and (self.gpus or 1) > 1:
            raise ValueError(f"mode is 'single' and gpus is {self.gpus}; use mode 'multi', or gpus 1")
        if self.cpu and self.gpu_ids:
            raise ValueError("cpu is true and gpu_ids are given; set one of them")
        if self.gpu_ids is not None and self.gpus is not None and len(self.gpu_ids) != self.gpus:
            raise ValueError(f"gpus is {self.gpus} and gpu_ids names {len(self.gpu_ids)}; give one, or make them agree")
        return self
