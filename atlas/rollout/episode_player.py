"""Plays one episode of an environment piece by piece, in the process that has the environment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas.data.sampling.history import ONE_FRAME, History, SeenFrames
from atlas.environments.environment import Environment, Expert, Simulator, StepResult
from atlas.environments.scene_variation import AS_IT_IS, VariableScene
from atlas.errors import InputError
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.traces import Trace, TraceRecorder
from atlas.rollout.verdicts.failures import Failure, MotionWatch
from atlas.types import Observation


@dataclass(frozen=True)
class Executed:
    """The executed actions of a piece, and their rewards."""

    actions: np.ndarray  # float32 [n, A], as the environment clipped them
    rewards: np.ndarray  # float32 [n]


@dataclass(frozen=True)
class Segment:
    """The result of a reset or of some actions."""

    observation: Observation | None  # None at the end of an episode, unless its transitions are wanted
    reward: float = 0.0  # the sum over these steps
    steps: int = 0
    terminated: bool = False
    truncated: bool = False
    success: bool = False  # at the last step
    trace: Trace | None = None  # of the whole episode, at its end, if it was recorded
    executed: Executed | None = None  # where transitions are wanted
    intermediate: tuple[Observation, ...] = ()  # after each of these steps but the last, where they are wanted
    failure: Failure | None = None  # how the episode failed, at its end, where a simulator shows it

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


class EpisodePlayer:
    """Plays an episode: call `begin`, then `run` until its result is done."""

    def __init__(
        self,
        env: Environment,
        episode: PlannedEpisode,
        record: bool = False,
        transitions: bool = False,
        history: History = ONE_FRAME,
        intermediate: bool = False,
    ) -> None:
        """record: keep a trace for films. transitions: report each step's executed action and reward, and observe the
        end too. history: the frames in observations; earlier frames mean that every step is observed. intermediate:
        observe every step, and report it. All of these cost time. Raises InputError for an unknown perturbation."""
        self._env, self._episode, self._record, self._transitions = env, episode, record, transitions
        choice = episode.perturbation
        self._perturbation = None if choice is None else choice.of_episode(episode.seed, env.spec)
        self._variation = AS_IT_IS if self._perturbation is None else self._perturbation.variation()
        # A simulator can give its state, or render an observation, afterwards.
        self._always_observed = (record or transitions) and not isinstance(env, Simulator)
        if self._perturbation is not None and self._perturbation.every_step:
            self._always_observed = True
        self._seen = SeenFrames(history)
        self._always_observed = self._always_observed or self._seen.every_step or intermediate
        self._intermediate = intermediate
        self._recorder: TraceRecorder | None = None
        self._watch: MotionWatch | None = None
        self._success = False

    def begin(self) -> Segment:
        """Begin the episode. Raises InputError where the environment cannot begin it."""
        env, episode = self._env, self._episode
        if isinstance(env, VariableScene):
            env.vary(self._variation)
        elif self._variation != AS_IT_IS:
            raise InputError(f"The scene of '{env.spec.name}' cannot be changed: {episode.perturbation} needs it.")
        if episode.init_state is None:
            observation = env.reset(seed=episode.seed, instruction=episode.instruction)
        elif isinstance(env, Simulator):
            observation = env.reset(init_state=episode.init_state, instruction=episode.instruction)
        else:
            raise InputError(f"'{env.spec.name}' is no simulator: it cannot be put into a recorded state.")
        if self._record:
            self._recorder = TraceRecorder(env, observation, self._variation)
        if isinstance(env, Simulator) and self._variation.goal == "lift":
            self._watch = MotionWatch(env)
        if self._perturbation is not None:
            self._perturbation.begin(env)
            observation = self._perturbation.see(observation)
        self._seen.add(observation)
        return Segment(self._seen.latest())

    def run(self, actions: np.ndarray) -> Segment:
        """Execute actions [n, A] until the episode ends. No actions truncate it."""
        results: list[StepResult] = []
        for number, action in enumerate(actions):
            results.append(self._step(action, observe=number == len(actions) - 1))
            if results[-1].done:
                break
        return self._segment(actions, results)

    def hand_over(self, expert: Expert) -> Segment:
        """Let an expert act until the episode ends."""
        actions: list[np.ndarray] = []
        results: list[StepResult] = []
        while not results or not results[-1].done:
            actions.append(expert.act())
            results.append(self._step(actions[-1], observe=False))
        return self._segment(np.stack(actions), results)

    def _step(self, action: np.ndarray, observe: bool) -> StepResult:
        changed = action if self._perturbation is None else self._perturbation.act(action)
        result = self._env.step(changed, observe=self._always_observed or observe)
        self._success = result.success
        if result.executed is None and self._perturbation is not None:
            result.executed = changed
        if self._recorder is not None:
            self._recorder.stepped(changed, result)
        if self._watch is not None:
            self._watch.stepped(changed)
        if self._perturbation is not None and result.observation is not None:
            result.observation = self._perturbation.see(result.observation)
        if result.observation is not None:
            self._seen.add(result.observation)
        return result

    def _segment(self, actions: np.ndarray, results: list[StepResult]) -> Segment:
        done = not results or results[-1].done
        failed = done and not self._success and self._watch is not None
        return Segment(
            observation=self._observed(results, done),
            reward=sum((result.reward for result in results), 0.0),
            steps=len(results),
            terminated=bool(results) and results[-1].terminated,
            truncated=not results or results[-1].truncated,
            success=self._success,
            trace=self._recorder.trace() if done and self._recorder is not None else None,
            intermediate=tuple(r.observation for r in results[:-1] if r.observation is not None)
            if self._intermediate
            else (),
            executed=_executed(actions, results) if self._transitions and results else None,
            failure=self._watch.failure() if failed and self._watch is not None else None,
        )

    def _observed(self, results: list[StepResult], done: bool) -> Observation | None:
        """The observation after these steps; at the end of an episode only where its transitions are wanted."""
        if not results or (done and not self._transitions):
            return None
        if results[-1].observation is None:  # it ended before the last action
            assert isinstance(self._env, Simulator)
            observation = self._env.observe()
            self._seen.add(observation if self._perturbation is None else self._perturbation.see(observation))
        return self._seen.latest()


def _executed(actions: np.ndarray, results: list[StepResult]) -> Executed:
    taken = [a if r.executed is None else r.executed for a, r in zip(actions, results, strict=False)]
    return Executed(np.stack(taken).astype(np.float32), np.array([r.reward for r in results], np.float32))
