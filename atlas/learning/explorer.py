"""Plays episodes in one world of this process, decision by decision, and logs them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from atlas.data.episode import RecordedEpisode
from atlas.environments.environment import Environment, Simulator
from atlas.environments.rendering import software_renderer, tell_of_software
from atlas.environments.state_world import StateWorld
from atlas.rollout.actor import Actor
from atlas.rollout.episode_plan import PlannedEpisode, episode_seed
from atlas.rollout.episode_player import EpisodePlayer, Executed, Segment
from atlas.rollout.experience import Played, as_recorded, ended, watched
from atlas.rollout.success_report import EpisodeOutcome
from atlas.rollout.transitions import Transition
from atlas.system.progress import progress_bar
from atlas.types import Observation

logger = logging.getLogger(__name__)

_RECENT = 10  # episodes in the averages, as the metrics' names say


@dataclass(frozen=True)
class EpisodeProgress:
    """The point that an explorer has reached in its episode, from which it can resume."""

    episodes: int  # ended before this one
    actions: np.ndarray  # float32 [n, A], given since the episode began
    reward: float
    proprio: np.ndarray  # float32 [P], of the current observation


@dataclass(frozen=True)
class Ended:
    """An episode that is over."""

    reward: float
    length: int
    success: bool | None  # None: the world does not report it
    truncated: bool
    seconds: float | None  # None: unknown, because others were played at the same time


Keep = Callable[[int, RecordedEpisode], None]


class Explorer:
    """Plays episodes one after another, on starts that nothing else uses; `observation` is the current one."""

    def __init__(
        self,
        env: Environment,
        seed: int,
        actor: int = 0,
        actors: int = 1,
        first: int = 0,
        repeat: int = 1,
        limit: int | None = None,
        keep: Keep | None = None,
    ) -> None:
        """actor: the number of this actor among `actors`. first: the number of episodes it has played before. repeat:
        how many consecutive episodes have the same start. limit: the steps after which an episode is truncated, if that
        is before the world's own limit. keep: receives each successful episode as a recording, with a unique number."""
        self._keep = keep
        # A simulator renders the images of a kept episode afterwards; other worlds are observed at every step.
        self._rendered = keep is not None and isinstance(env, Simulator)
        self._watched = keep is not None and not self._rendered
        self.env, self._seed, self._actor, self._actors, self._repeat = env, seed, actor, actors, repeat
        self._limit = env.spec.horizon if limit is None else limit
        self.episodes = first
        self.begin()
        tell_of_software(env.spec.name, software_renderer())

    def begin(self) -> None:
        """Begin the next episode."""
        number = self.episodes // self._repeat * self._actors + self._actor
        instructions = self.env.spec.instructions or ("",)
        instruction = instructions[number % len(instructions)]
        planned = PlannedEpisode(number, episode_seed("explore", self._seed, number), instruction)
        self._player = EpisodePlayer(
            self.env, planned, record=self._rendered, transitions=True, intermediate=self._watched
        )
        begun = self._player.begin()
        assert begun.observation is not None
        self.observation: Observation = begun.observation
        self._reward, self._length, self._begun = 0.0, 0, time.monotonic()
        self._actions = list[np.ndarray]()
        self._observations, self._executed = [self.observation], list[Executed]()

    @property
    def progress(self) -> EpisodeProgress:
        """The point reached in the episode; see `resume`."""
        actions = [*self._actions, np.zeros((0, self.env.spec.action_spec.dim), np.float32)]
        return EpisodeProgress(
            self.episodes, np.concatenate(actions), self._reward, self.observation.proprio.astype(np.float32)
        )

    def resume(self, progress: EpisodeProgress) -> None:
        """Restart the episode that was being played and repeat its actions. A deterministic world is then where it was;
        for any other, a warning is logged."""
        self.episodes = progress.episodes
        self.begin()
        if not len(progress.actions):
            return
        segment = self._run(progress.actions)
        if not segment.done and segment.observation is not None:
            self.observation = segment.observation
            self._actions, self._length, self._reward = [progress.actions], len(progress.actions), progress.reward
            if np.array_equal(self.observation.proprio.astype(np.float32), progress.proprio):
                return
        logger.warning(
            "'%s' does not repeat what was done in it: the run does not go on exactly as it would have",
            self.env.spec.name,
        )
        if segment.done:
            self.episodes += 1
            self.begin()

    def step(self, actions: np.ndarray) -> tuple[Transition, Ended | None]:
        """Execute actions [n, A]. At the end of an episode, begin the next."""
        taken = actions[: self._limit - self._length]
        self._actions.append(np.array(taken, np.float32))
        segment = self._run(taken)
        if not segment.done and self._length + segment.steps >= self._limit:
            segment = replace(segment, truncated=True)
        transition = Transition.between(self.observation, segment)
        self.observation = transition.next_observation
        self._reward += segment.reward
        self._length += segment.steps
        if not segment.done:
            return transition, None
        seconds = time.monotonic() - self._begun
        success = segment.success if self.env.spec.judged else None
        done = Ended(self._reward, self._length, success, segment.truncated, seconds)
        if self._keep is not None and segment.success:
            self._keep_played(segment)
        self.episodes += 1
        self.begin()
        return transition, done

    def _run(self, actions: np.ndarray) -> Segment:
        segment = self._player.run(actions)
        if self._watched and segment.observation is not None and segment.executed is not None:
            self._observations += [*segment.intermediate, segment.observation]
            self._executed.append(segment.executed)
        return segment

    def _keep_played(self, segment: Segment) -> None:
        """Hand on the episode that has just ended, unless it was cut off where the world itself goes on."""
        assert self._keep is not None
        number, instruction = self.episodes * self._actors + self._actor, self.observation.instruction
        if self._watched:
            self._keep(number, watched(self._observations, self._executed))
        elif segment.trace is not None:
            # Critics may get more than the policy sees; only what the policy sees is recorded.
            env = self.env.inner if isinstance(self.env, StateWorld) and self.env.spec.cameras else self.env
            self._keep(number, as_recorded(env, Played(segment.trace, instruction)))


class EpisodeLog:
    """The curves `actor/*`, also as `Train/*` for dashboards that expect those names."""

    def __init__(self) -> None:
        self.steps, self.episodes = 0, 0
        self._recent: deque[Ended] = deque(maxlen=_RECENT)
        self._size, self._decisions = 0.0, 0
        self._since, self._steps_then = time.monotonic(), 0

    def decided(self, actions: np.ndarray) -> None:
        """Count executed actions [n, A]."""
        self.steps += len(actions)
        self._size += float(np.linalg.norm(actions, axis=1).sum())
        self._decisions += len(actions)

    def ended(self, episode: Ended, exploring: bool, replay_size: int) -> dict[str, float]:
        """Count an episode, and return the metrics after it."""
        self.episodes += 1
        self._recent.append(episode)
        rewards = [each.reward for each in self._recent]
        now = time.monotonic()
        speed = (self.steps - self._steps_then) / max(now - self._since, 1e-9)
        size = self._size / max(1, self._decisions)
        self._since, self._steps_then, self._size, self._decisions = now, self.steps, 0.0, 0
        return {
            "actor/episode_reward": episode.reward,
            "actor/episode_length": episode.length,
            "actor/episode_count": self.episodes,
            "actor/total_steps": self.steps,
            "actor/avg_action_magnitude": size,
            "actor/exploration_phase": float(exploring),
            "actor/avg_episode_reward_10": float(np.mean(rewards)),
            "actor/max_episode_reward": max(rewards),
            "actor/min_episode_reward": min(rewards),
            "actor/avg_episode_length_10": float(np.mean([each.length for each in self._recent])),
            "actor/steps_per_second": speed,
            "actor/replay_buffer_size": replay_size,
            **summary_aliases("Train", list(self._recent)),
        }


def summary_aliases(prefix: str, episodes: Sequence[Ended]) -> dict[str, float]:
    """Rewards, successes, durations and timeouts of episodes, under the names that other dashboards use."""
    seconds = [each.seconds for each in episodes if each.seconds is not None]
    successes = [each.success for each in episodes if each.success is not None]
    return {
        f"{prefix}/Reward_Mean": float(np.mean([each.reward for each in episodes])),
        f"{prefix}/Reward_Std": float(np.std([each.reward for each in episodes])),
        f"{prefix}/Budget_Violation_Rate": float(np.mean([each.truncated for each in episodes])),
        **({f"{prefix}/Accuracy_Mean": float(np.mean(successes))} if successes else {}),
        **({f"{prefix}/Latency_Mean": float(np.mean(seconds))} if seconds else {}),
    }


def play_here(
    env: Environment, actor: Actor, planned: Sequence[PlannedEpisode], title: str | None, each: Callable[[], None]
) -> list[tuple[EpisodeOutcome, Ended]]:
    """Play episodes in this process, one after another, with a progress bar named `title`. each: called before every
    episode."""
    played = []
    with progress_bar(title, len(planned)) as advance:
        for episode in planned:
            each()
            played.append(_play(env, actor, episode))
            advance(1)
    return played


def _play(env: Environment, actor: Actor, episode: PlannedEpisode) -> tuple[EpisodeOutcome, Ended]:
    player, begun = EpisodePlayer(env, episode), time.monotonic()
    segments = [player.begin()]
    actor.reset(0, episode.seed)
    while not (last := segments[-1]).done:
        assert last.observation is not None
        segments.append(player.run(actor.plan({0: last.observation})[0]))
    seconds = time.monotonic() - begun
    outcome = ended(episode, segments, env.spec.judged, handed_over=False).outcome
    success = outcome.success if outcome.judged else None
    return outcome, Ended(outcome.reward, outcome.length, success, last.truncated, seconds)
