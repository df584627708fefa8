"""`learning`: how a policy learns from its own experience."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from atlas.config.section import NotNegative, Positive, Section

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


class LearningConfig(Section):
    held_out_episodes: Positive = 100  # on which the policies before and after are compared, and the control
    round_episodes: NotNegative = 20  # to follow the success round by round; 0: none
    dagger: DaggerConfig = DaggerConfig()
    rft: RftConfig = RftConfig()
