"""`training`, `checkpoint`, `evaluation` and `distributed`: how the policy is trained."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, model_validator

from atlas.config.gym_section import GymConfig
from atlas.config.section import NotNegative, Positive, Probability, Section, UserPath, Weight


class EarlyStoppingConfig(Section):
    """End before max_steps once a metric has not improved for `patience` of its values in a row."""

    metric: Annotated[str, Field(pattern="^(val|eval)/")]
    mode: Literal["auto", "max", "min"] = "auto"  # auto: by the metric's name
    patience: Positive = 5
    min_delta: Weight = 0.0  # a smaller improvement does not count


class ProfileConfig(Section):
    """Trace some steps: what ran when, on the CPU and on the GPU."""

    start: NotNegative = 20  # optimizer steps of this process before the first one traced
    steps: Positive = 3


class TrainingConfig(Section):
    # A run, a checkpoint or a reference (wandb:…): begin with its weights and its scaling; null: with new weights.
    start_from: str | None = None
    max_steps: Positive | None = 1500  # optimizer steps; or num_epochs
    num_epochs: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    # cosine: a linear warm-up, then a cosine down over the steps that are left. cosine_from_start: LeRobot's, whose
    # cosine is of decay_steps, counted from the first step; a shorter run shrinks it and the warm-up in proportion
    schedule: Literal["cosine", "cosine_from_start"] = "cosine"
    final_learning_rate: Annotated[float, Field(gt=0)] | None = None  # where it ends; null: a hundredth
    decay_steps: Positive | None = None  # of cosine_from_start; null: as many as there are
    weight_decay: Weight = 0.01
    warmup_steps: NotNegative = 100
    gradient_accumulation_steps: Positive = 1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on GPUs that have it, otherwise fp32
    log_interval: Positive = 50
    val_interval: Positive = 500
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995  # 0: the weights are not averaged
    max_skipped_steps: Positive = 10  # in a row, because the loss or gradient is not finite; then training stops
    early_stopping: EarlyStoppingConfig | None = None
    activation_checkpointing: bool = False  # compute activations twice instead of keeping them: less memory
    compile: bool = False  # compile the policy's blocks with torch.compile
    fused_optimizer: bool = True
    # The learning rate when a run is resumed with another max_steps. keep: the schedule stays, and is at its lowest
    # after the steps it was made for; stretch: the schedule of the new number, which makes the rate jump.
    schedule_on_resume: Literal["keep", "stretch"] = "keep"
    # same: a run resumes with the episodes it began with, whatever their files are called; changed: episodes may have
    # been added or removed. Those the run knows stay in training or validation as they were.
    data_on_resume: Literal["same", "changed"] = "same"
    tf32: bool = True  # for float32 matrix products on GPUs: faster, with 10 bits of mantissa
    profile: ProfileConfig | None = None

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.max_steps is None) == (self.num_epochs is None):
            state = "neither is set" if self.max_steps is None else "both are set"
            raise ValueError(f"max_steps and num_epochs: {state}; set one, and the other to null")
        if self.decay_steps is not None and self.schedule == "cosine":
            raise ValueError("decay_steps is of the schedule cosine_from_start, and schedule is cosine")
        if self.final_learning_rate is not None and self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate is {self.final_learning_rate:g}, more than learning_rate ({self.learning_rate:g})"
            )
        return self


class CheckpointConfig(Section):
    save_interval: Positive = 750
    keep_last_n: Positive = 3  # in addition to those that the next two keep
    keep_best: Positive = 1  # the best ones by model_management.best_model_metric
    keep_every_n_steps: Positive | None = None  # those whose step is a multiple of this are kept too


def three_quarters(horizon: int) -> int:
    """How many actions of a chunk of H are executed unless more is known: policies that look again after half of it
    change their mind more often, and succeed less often in the cubes world (docs/benchmarks.md)."""
    return max(1, horizon * 3 // 4)


class EvaluationConfig(Section):
    """Closed-loop episodes in a simulator: during training (to choose the best checkpoint) and at the end."""

    env: str = "auto"  # auto: the world the data was recorded in, if there is an adapter for it; none: no evaluation
    gym: GymConfig = GymConfig()  # how an env of gymnasium (gym:ID) is read, where its spaces do not tell it
    seed: Annotated[int, Field(ge=0, lt=10**6)] = 0  # of the episodes: runs that share it can be compared in pairs
    episodes: NotNegative = 20  # at each evaluation during training; 0: no rollouts
    interval: Positive = 750  # optimizer steps
    final_episodes: NotNegative = 40  # with the best checkpoint, after training
    video: NotNegative = 4  # episodes filmed in the final evaluation
    record_path: UserPath | None = None  # a folder for films of evaluations; null: videos/ in the run's folder
    execute: Positive = 6  # how many actions of each predicted chunk are executed; null: three quarters
    ensemble: Annotated[float, Field(ge=0)] | None = None  # the weight of temporal ensembling; null: off
    delay_ms: Annotated[float, Field(ge=0)] = 0.0  # until a chunk is there, as on the robot; the last one goes on
    # Where two chunks overlap. null: the new one counts; a number: the last one's weight; guided: the new one is made
    # to go on from the last one (real-time chunking; flow-matching heads)
    blend: Probability | Literal["guided"] | None = None
    workers: Positive | None = None  # environment processes per rank; null: one per core, up to 16
    # Of the final ones, a quarter at most, played again with another task named, and again with black images; 0: none.
    probe_episodes: NotNegative = 10
    # Played at the end, each all, NAME or CATEGORY, with :LEVEL or :1-3 behind it or all five levels.
    perturbations: list[str] = []
    perturbation_episodes: Positive = 20  # of the final ones, of each perturbation and level


class DistributedConfig(Section):
    mode: Literal["auto", "single", "multi"] = "auto"  # auto: all visible GPUs, or one CPU process
    gpus: Positive | None = None  # processes; with cpu: true, CPU processes
    gpu_ids: list[NotNegative] | None = None
    cpu: bool = False
    # ddp: every process has the whole policy; fsdp: weights, gradients and optimizer state are sharded over them.
    strategy: Literal["ddp", "fsdp"] = "ddp"
    timeout_minutes: Annotated[float, Field(gt=0)] = 30.0  # a process that does nothing for so long has hung
    num_nodes: Positive | None = None  # machines; null: SLURM's number, otherwise 1
    node_rank: NotNegative | None = None  # which of them this is; null: SLURM's number, otherwise 0
    master_addr: str | None = None  # the first machine's address; null: SLURM's first node
    master_port: Annotated[int, Field(ge=1024, le=65535)] = 29500  # a free port on that machine

    @property
    def group_timeout(self) -> timedelta:
        """The time that processes wait for one that does not arrive. It is longer than the hang watchdog's time, so
        that the watchdog first shows where each process is."""
        return timedelta(minutes=self.timeout_minutes + 1)

    @model_validator(mode="after")
    def _no_contradiction(self) -> DistributedConfig:
        if self.mode == "single" and (self.gpus or 1) > 1:
            raise ValueError(f"mode is 'single' but gpus is {self.gpus}; use mode 'multi', or gpus 1")
        if self.cpu and self.gpu_ids:
            raise ValueError("cpu is true but gpu_ids are given; set only one of them")
        if self.gpu_ids is not None and self.gpus is not None and len(self.gpu_ids) != self.gpus:
            raise ValueError(f"gpus is {self.gpus} but gpu_ids names {len(self.gpu_ids)}; set one, or make them agree")
        return self
