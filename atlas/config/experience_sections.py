"""`learning`: how a policy learns from its own experience."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from atlas.config.section import Layers, NotNegative, Positive, Section, Size, UserPath, Weight

Share = Annotated[float, Field(gt=0, lt=1)]


class RoundsConfig(Section):
    """Rounds of playing and of imitation: what a round has played is trained on in it and in all that follow."""

    rounds: Positive
    episodes: Positive  # played in each round
    steps: Positive  # optimizer steps of each round
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: NotNegative = 20
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.98  # training.ema_decay of each round
    experience_share: Share = 0.5  # of the samples; the rest are from the demonstrations


class DaggerConfig(RoundsConfig):
    """The world's expert takes over from the policy and shows how to go on from where the policy has come to.

    DAgger by intervention (Ross et al., 2011; Kelly et al., 2019).
    """

    rounds: Positive = 3
    episodes: Positive = 50
    steps: Positive = 400
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    decisions: NotNegative = 15  # the expert takes over after 0 to so many of the policy's decisions, drawn for each


class RftConfig(RoundsConfig):
    """The policy acts with noise, and imitates those of its episodes that succeed (filtered self-imitation)."""

    rounds: Positive = 4
    episodes: Positive = 60
    steps: Positive = 200
    learning_rate: Annotated[float, Field(gt=0)] = 4e-4
    noise: Annotated[float, Field(gt=0, lt=1)] = 0.04  # standard deviation, of half the range of an action
    shared_noise: Annotated[float, Field(ge=0, le=1)] = 0.8  # of its variance: one draw for all actions of a decision


Rate = Annotated[float, Field(gt=0)]
Discount = Annotated[float, Field(ge=0, lt=1)]


class OnlineConfig(Section):
    """Settings of all learning by reward: how many steps in the environment, and when it is looked at and saved."""

    steps: Positive  # in the environment
    learning_rate: Rate = 3e-4
    eval_interval: Positive = 5000  # environment steps
    eval_episodes: Positive = 10  # of each evaluation; the best policy by them is kept
    save_interval: Positive = 5000  # environment steps, at the end of an episode
    keep_successes: bool = False  # writes the episodes of learning that succeed, as demonstrations are
    episode_steps: Positive | None = None  # after which an episode of learning is cut off; null: the world's own limit


class SacBaseConfig(OnlineConfig):
    """Settings of soft actor-critic with an ensemble of critics, in one process or in several."""

    steps: Positive = 10_000
    gamma: Discount = 0.99
    random_steps: NotNegative = 1000  # before the policy acts: actions drawn from the whole range
    training_starts: Positive = 1000  # environment steps
    batch_size: Positive = 256
    replay_capacity: Annotated[int, Field(ge=100)] = 100_000  # decisions
    priority: Annotated[float, Field(ge=0, le=1)] = 0.0  # draws decisions more often, the more their values are off
    utd_ratio: Annotated[float, Field(gt=0)] = 1.0  # updates of the critics for each decision
    critic_actor_ratio: Positive = 1  # updates of the critics for one of the actor
    critic_warmup: NotNegative = 0  # updates of the critics before the actor's first
    critics: Annotated[int, Field(ge=2, le=100)] = 2
    critic_subset: Positive = 2  # of them, drawn anew, whose minimum is believed
    layer_norm: bool = True  # in the critics
    width: Size = 256  # of the critics' layers
    layers: Layers = 2
    critic_learning_rate: Rate = 3e-4
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005  # of the targets, which follow the critics
    n_step: Positive = 1
    temperature: Rate = 1.0  # that it begins with
    learn_temperature: bool = True
    target_entropy: float | None = None  # null: minus the number of an action's dimensions
    demonstrations: UserPath | None = None  # a dataset of the same world, each episode of which ends with success
    demonstration_share: Share = 0.5  # of each batch
    push_interval: Positive = 50  # updates after which actors in other processes get the weights
    steps_per_message: Positive = 50  # decisions that an actor sends at once
    connect_timeout: Annotated[float, Field(gt=0)] = 60.0  # seconds that an actor waits for its learner

    @model_validator(mode="after")
    def _agree(self) -> SacBaseConfig:
        if self.random_steps > self.steps:
            raise ValueError(
                f"random_steps is {self.random_steps}, more than steps ({self.steps}): the policy would never act; "
                f"such as random_steps={self.steps // 10}"
            )
        if self.training_starts >= self.steps:
            raise ValueError(
                f"training_starts is {self.training_starts}, but there are only {self.steps} steps: nothing would be "
                f"learned; such as training_starts={self.steps // 10}"
            )
        if self.critic_subset > self.critics:
            raise ValueError(f"critic_subset is {self.critic_subset}, but there are {self.critics} critics")
        if self.random_steps > self.replay_capacity:
            raise ValueError(
                f"random_steps is {self.random_steps}, more than the replay holds ({self.replay_capacity})"
            )
        return self


class SacConfig(SacBaseConfig):
    """Soft actor-critic, in one process or in several."""


class ResidualSacConfig(SacBaseConfig):
    """A small correction of a frozen policy, by soft actor-critic (`atlas learn sac --residual`)."""

    steps: Positive = 80_000
    gamma: Discount = 0.97  # a decision
    learning_rate: Rate = 1e-4
    random_steps: NotNegative = 0  # of corrections from the whole range
    training_starts: Positive = 2000
    batch_size: Positive = 128
    critic_warmup: NotNegative = 500
    critics: Annotated[int, Field(ge=2, le=100)] = 4
    n_step: Positive = 3
    temperature: Rate = 0.003
    scale: Annotated[float, Field(gt=0, le=1)] = 0.15  # the largest correction of a scaled number
    actor_width: Size = 256  # of the correction's layers
    actor_layers: Layers = 2
    penalty: Weight = 0.03  # of the square of corrections, where 1 is the largest
    size_limit: Annotated[float, Field(gt=0, le=1)] = 0.6  # the corrections' mean size at which the run ends
    object_positions: bool = False  # tells the critics, and them alone, where the objects are, in simulation


class OnPolicyConfig(OnlineConfig):
    """Settings of all methods that learn from what the present policy has just played."""

    epochs: Positive  # over what was played
    batch_size: Positive = 64  # decisions
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the ratio of probabilities, below and above 1
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    entropy_weight: Weight = 0.0
    max_grad_norm: Rate = 0.5
    kl_limit: Rate | None = None  # approximate KL from the policy that played, at which the epochs end; null: none
    start_kl_limit: Rate | None = None  # approximate KL from the policy of the start, at which the run ends; null: none
    anneal: bool = True  # the learning rate falls to 0 over the steps
    # Of a policy that says one action alone (the head regression): the deviation of its scaled pose, and how much of
    # its variance all actions of a chunk share
    noise: Annotated[float, Field(gt=0, lt=1)] = 0.05
    shared_noise: Share = 0.8
    # Of a policy that grows its chunk from noise (the head flow_matching, smolvla, pi0, pi05): the size of the noise at
    # the one of its steps that is random
    flow_noise: Annotated[float, Field(gt=0, le=2)] = 0.5

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if isinstance(values, dict) and "most_divergence" in values:
            if values["most_divergence"] is not None:
                raise ValueError("most_divergence is called kl_limit now")
            return {key: value for key, value in values.items() if key != "most_divergence"}  # of an older run's config
        return values


class PpoConfig(OnPolicyConfig):
    """Proximal policy optimisation, with generalised advantage estimates."""

    steps: Positive = 100_000
    gamma: Discount = 0.99
    worlds: Annotated[int, Field(ge=1, le=64)] = 4  # played side by side
    decisions: Annotated[int, Field(ge=2)] = 512  # of each world, between two times of learning
    epochs: Positive = 10
    trace: Annotated[float, Field(ge=0, le=1)] = 0.95  # lambda of the advantage estimates
    value_weight: Weight = 0.5
    value_learning_rate: Rate | None = None  # of the value network; null: learning_rate
    # What is learned from: the world's rewards, or 1 for success. Where success ends an episode, rewards for being near
    # it teach to stay near and not to succeed
    reward: Literal["world", "success"] = "world"
    scale_rewards: bool = True  # by the deviation of the returns so far
    width: Size = 64  # of the value network's layers
    layers: Layers = 2


class GrpoConfig(OnPolicyConfig):
    """Group-relative policy optimisation: episodes from one start are worth what they reach beyond each other."""

    steps: Positive = 200_000
    learning_rate: Rate = 3e-5
    groups: Positive = 8  # starts, between two times of learning
    group_size: Annotated[int, Field(ge=2, le=1024)] = 8  # episodes from each
    keep_low: Annotated[float, Field(ge=0, le=1)] = 0.1  # a group counts if such a share of it succeeds
    keep_high: Annotated[float, Field(ge=0, le=1)] = 0.9
    epochs: Positive = 2
    batch_size: Positive = 256
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    kl_limit: Rate | None = 0.2
    kl_weight: Weight = 0.0  # of the divergence from the policy of the start, in the loss
    anneal: bool = False

    @model_validator(mode="after")
    def _agree(self) -> GrpoConfig:
        if self.keep_low > self.keep_high:
            raise ValueError(
                f"keep_low is {self.keep_low}, more than keep_high ({self.keep_high}): no group would count; "
                "such as 0.1 and 0.9"
            )
        return self


class LearningConfig(Section):
    held_out_episodes: Positive = 100  # on which the policies before and after are compared, and the control
    # Whether learning by reward, too, is compared with as many steps of plain imitation, where there are demonstrations
    control: bool = True
    round_episodes: NotNegative = 20  # to follow the success round by round; 0: none
    # model.processor.proprio_margin of policies that learning by reward begins with: what they try leads beyond what
    # was demonstrated, and an input far outside of it has no sensible answer; null: as the policy has it
    proprio_margin: Annotated[float, Field(ge=0)] | None = 1.0
    dagger: DaggerConfig = DaggerConfig()
    rft: RftConfig = RftConfig()
    sac: SacConfig = SacConfig()
    residual: ResidualSacConfig = ResidualSacConfig()
    ppo: PpoConfig = PpoConfig()
    grpo: GrpoConfig = GrpoConfig()
