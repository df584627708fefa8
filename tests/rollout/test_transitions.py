"""What a rollout delivers to whoever learns from it: the decisions, one after the other, up to the end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np

from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.environments.cubes import CubesEnvironment
from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.episode_player import EpisodePlayer
from atlas.rollout.evaluation import Evaluator
from atlas.rollout.success_report import EpisodeOutcome
from atlas.rollout.transitions import Transition
from atlas.types import Observation

SIZE, CHUNK = 16, 7


class Demonstrator:
    """Does what was recorded, some actions at a time."""

    processor = None

    def __init__(self, dataset: EpisodeDataset) -> None:
        self._dataset = dataset
        self._left: dict[int, np.ndarray] = {}

    def reset(self, episode: int, seed: int) -> None:
        self._left[episode] = self._dataset.episode(seed).actions

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        planned = {number: self._left[number][:CHUNK] for number in observations}
        for number in planned:
            self._left[number] = self._left[number][CHUNK:]
        return planned


def test_transitions_are_the_episode_whoever_plays_it(cubes_dataset: Path) -> None:
    dataset = open_dataset(cubes_dataset)
    episodes = [PlannedEpisode(n, n, dataset.episode(n).instruction, dataset.episode(n).init_state) for n in (7, 0)]
    found: dict[int, dict[int, list[Transition]]] = {workers: {0: [], 7: []} for workers in (1, 2)}
    asked = {}

    for workers in (1, 2):
        with closing(Evaluator("cubes", SIZE, workers)) as evaluator:
            keep = lambda episode, transition, of=found[workers]: of[episode.number].append(transition)  # noqa: E731
            asked[workers] = evaluator.play(Demonstrator(dataset), episodes, title=None, on_transition=keep)
            if workers == 1:
                plain = evaluator.play(Demonstrator(dataset), episodes, title=None)

    outcomes = [p.outcome for p in plain]
    assert all([p.outcome for p in played] == outcomes for played in asked.values())
    with closing(CubesEnvironment(SIZE)) as world:
        for episode, outcome in zip(episodes, outcomes, strict=True):
            one, two = (found[workers][episode.number] for workers in (1, 2))
            for transitions in (one, two):
                check(transitions, dataset.episode(episode.number).actions, outcome)
            first = world.reset(init_state=episode.init_state, instruction=episode.instruction)
            assert alike(one[0].observation, first) and alike(two[0].observation, first)
            for action in np.concatenate([t.actions for t in one]):
                result = world.step(action)
            assert result.done and outcome.success
            assert alike(one[-1].next_observation, result.observation)
            assert alike(two[-1].next_observation, result.observation)


def check(transitions: list[Transition], actions: np.ndarray, outcome: EpisodeOutcome) -> None:
    executed = np.concatenate([t.actions for t in transitions])
    rewards = np.concatenate([t.rewards for t in transitions])
    np.testing.assert_array_equal(executed, actions[: outcome.length].astype(np.float32))
    assert [len(t.actions) for t in transitions[:-1]] == [CHUNK] * (len(transitions) - 1)
    assert len(executed) == len(rewards) == outcome.length and len(transitions) > 2
    assert rewards.sum() == sum(t.reward for t in transitions) == outcome.reward == 1
    assert [t.terminated for t in transitions] == [False] * (len(transitions) - 1) + [True]
    assert not any(t.truncated for t in transitions)
    for before, after in pairwise(transitions):
        assert before.next_observation is after.observation


def alike(a: Observation, b: Observation | None) -> bool:
    assert b is not None and a.images.keys() == b.images.keys()
    same = all(np.array_equal(a.images[camera], b.images[camera]) for camera in a.images)
    return same and np.array_equal(a.proprio, b.proprio) and a.instruction == b.instruction


class Counter:
    """A world that is no simulator. It halves what it is told, pays the step's number, and has time for five steps."""

    spec = EnvironmentSpec("counter", ("wait",), ("front",), (4, 4), 1, horizon=5)

    def __init__(self) -> None:
        self.steps, self.looks = 0, 0

    def reset(self, *, seed: int | None = None, instruction: str | None = None) -> Observation:
        return self._seen()

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        self.steps += 1
        over = self.steps == self.spec.horizon
        seen = self._seen() if observe else None
        return StepResult(seen, float(self.steps), False, over, success=over, executed=action / 2)

    def close(self) -> None:
        pass

    def _seen(self) -> Observation:
        self.looks += 1
        return Observation({"front": np.full((4, 4, 3), self.steps, np.uint8)}, np.zeros(1, np.float32), "wait")


def test_what_is_seen_between_two_decisions_comes_with_the_transition_if_it_is_asked_for() -> None:
    world, found = Counter(), list[Transition]()
    player = EpisodePlayer(world, PlannedEpisode(0, 1, "wait"), transitions=True, intermediate=True)
    before = player.begin().observation
    for count in (3, 9):  # the second chunk is cut short by the end of the episode
        assert before is not None
        found.append(Transition.between(before, player.run(np.ones((count, 2)))))
        before = found[-1].next_observation

    shown = [[int(seen.images["front"][0, 0, 0]) for seen in each.intermediate] for each in found]
    assert shown == [[1, 2], [4]] and found[-1].truncated
    assert [len(each.actions) for each in found] == [3, 2]


def test_a_world_that_is_no_simulator_is_observed_at_its_end_too() -> None:
    world = Counter()
    player = EpisodePlayer(world, PlannedEpisode(0, 1, "wait"), transitions=True)
    seen = player.begin().observation
    assert seen is not None

    first = player.run(np.ones((3, 7)))
    last = player.run(np.ones((3, 7)))

    assert first.observation is not None
    transition = Transition.between(first.observation, last)
    assert transition.actions.tolist() == [[0.5] * 7] * 2 and transition.rewards.tolist() == [4, 5]
    assert (transition.reward, transition.terminated, transition.truncated) == (9, False, True)
    assert [o.images["front"].max() for o in (seen, first.observation, transition.next_observation)] == [0, 3, 5]


def test_what_is_not_asked_for_is_neither_looked_at_nor_said() -> None:
    world = Counter()
    player = EpisodePlayer(world, PlannedEpisode(0, 1, "wait"))
    player.begin()

    first = player.run(np.ones((3, 7)))
    last = player.run(np.ones((8, 7)))

    assert world.looks == 2 and first.executed is None
    assert last.done and last.observation is None and last.executed is None and last.reward == 9
