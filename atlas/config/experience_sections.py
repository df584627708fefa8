"""`learning`: how a policy learns from its own experience."""

from __future__ import annotations

from typing import Annotated

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
    """What learning by reward has in common: so many steps in the environment, and when it is looked at and saved."""

    steps: Positive  # in the environment
    learning_rate: Rate = 3e-4
    gamma: Discount = 0.99
    eval_interval: Positive = 5000  # environment steps
    eval_episodes: Positive = 10  # of each evaluation; the best policy by them is kept
    save_interval: Positive = 5000  # environment steps, at the end of an episode


class SacConfig(OnlineConfig):
    """Soft actor-critic, with an ensemble of critics."""

    steps: Positive = 10_000
    random_steps: NotNegative = 1000  # before the policy acts: actions drawn from the whole range
    training_starts: Positive = 1000  # environment steps
    batch_size: Positive = 256
    replay_capacity: Annotated[int, Field(ge=100)] = 100_000  # decisions
    utd_ratio: Annotated[float, Field(gt=0)] = 1.0  # updates of the critics for each decision
    critic_actor_ratio: Positive = 1  # updates of the critics for one of the actor
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
    def _agree(self) -> SacConfig:
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


class PpoConfig(OnlineConfig):
    """Proximal policy optimisation, with generalised advantage estimates."""

    steps: Positive = 100_000
    worlds: Annotated[int, Field(ge=1, le=64)] = 4  # played side by side
    decisions: Annotated[int, Field(ge=2)] = 512  # of each world, between two times of learning
    epochs: Positive = 10  # over what was played
    batch_size: Positive = 64
    trace: Annotated[float, Field(ge=0, le=1)] = 0.95  # lambda of the advantage estimates
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the ratio of probabilities, below and above 1
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    value_weight: Weight = 0.5
    entropy_weight: Weight = 0.0
    max_grad_norm: Rate = 0.5
    most_divergence: Rate | None = None  # approximate KL after which an update's epochs end; null: none
    anneal: bool = True  # the learning rate falls to 0 over the steps
    scale_rewards: bool = True  # by the deviation of the returns so far
    width: Size = 64  # of the value network's layers
    layers: Layers = 2


class LearningConfig(Section):
    held_out_episodes: Positive = 100  # on which the policies before and after are compared, and the control
    round_episodes: NotNegative = 20  # to follow the success round by round; 0: none
    dagger: DaggerConfig = DaggerConfig()
    rft: RftConfig = RftConfig()
    sac: SacConfig = SacConfig()
    ppo: PpoConfig = PpoConfig()
