"""Episodes that run side by side: whose outcome is whose, and in which worlds a policy may act."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from atlas.environments.cubes import cubes_spec
from atlas.environments.environment import StepResult
from atlas.environments.rendering import RenderingGPU
from atlas.errors import InputError
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.episode_player import EpisodePlayer, Segment
from atlas.rollout.evaluation import MOST_WORKERS, Evaluator, check_policy_fits
from atlas.types import ActionSpec
from tests.action_spaces import ABSOLUTE, GRIPPER, POSITION, ROTATION
from tests.policies.test_policy import make_processor
from tests.rollout.test_executor import STILL, CountingPolicy


class Pool:
    """Workers without a simulator. An episode takes as many chunks as its seed says; one of an even seed is solved."""

    def __init__(self, env: str, image_size: int, size: int, gpu: RenderingGPU | None = None) -> None:
        self._left: dict[int, tuple[int, int]] = {}  # worker: its episode's seed, and the chunks that are left
        self._size = size

    def __len__(self) -> int:
        return self._size

    def grow(self, size: int) -> None:
        self._size = max(self._size, size)

    def begin(self, worker: int, episode: PlannedEpisode, *_: object) -> None:
        self._left[worker] = episode.seed, episode.seed
        self._answers = {**getattr(self, "_answers", {}), worker: Segment(STILL)}

    def run(self, worker: int, actions: np.ndarray) -> None:
        seed, left = self._left[worker]
        self._left[worker] = seed, left - 1
        over, solved = left == 1, left == 1 and seed % 2 == 0
        self._answers[worker] = Segment(
            None if over else STILL, float(solved), len(actions), solved, over and not solved, solved
        )

    def answers(self) -> dict[int, Segment]:
        answers, self._answers = self._answers, {}
        return answers

    def close(self) -> None:
        pass


def test_outcomes_are_those_of_their_episodes_whichever_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.rollout.evaluation.EnvironmentPool", Pool)
    episodes = [PlannedEpisode(i, seed, f"lift {seed}") for i, seed in enumerate((5, 2, 1, 4, 3))]

    outcomes = Evaluator("cubes", 32, workers=2).run(ChunkExecutor(CountingPolicy(), execute=2), episodes, title=None)

    assert [(o.seed, o.instruction) for o in outcomes] == [(e.seed, e.instruction) for e in episodes]
    assert [(o.length, o.success, o.reward) for o in outcomes] == [
        (10, False, 0.0),
        (4, True, 1.0),
        (2, False, 0.0),
        (8, True, 1.0),
        (6, False, 0.0),
    ]


@pytest.mark.parametrize(("workers", "expected"), [(None, [2, 5, 5]), (3, [2, 3, 3])])
def test_there_are_no_more_workers_than_episodes(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, expected: list[int]
) -> None:
    monkeypatch.setattr("atlas.rollout.evaluation.EnvironmentPool", Pool)
    monkeypatch.setattr("atlas.rollout.evaluation.available_cores", lambda: 224)
    evaluator, seen = Evaluator("cubes", 32, workers), []

    for count in (2, 5, 1):
        episodes = [PlannedEpisode(i, 1, "lift") for i in range(count)]
        evaluator.run(ChunkExecutor(CountingPolicy(), execute=2), episodes, title=None)
        seen.append(len(evaluator._pool))

    assert seen == expected


def test_a_large_machine_does_not_start_a_simulator_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.rollout.evaluation.EnvironmentPool", Pool)
    monkeypatch.setattr("atlas.rollout.evaluation.available_cores", lambda: 224)
    evaluator = Evaluator("cubes", 32)

    evaluator.run(ChunkExecutor(CountingPolicy(), execute=2), [PlannedEpisode(i, 1, "lift") for i in range(100)])

    assert len(evaluator._pool) == MOST_WORKERS


class Short:
    """A world whose episodes are solved at their third step."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        self.steps += 1
        solved = self.steps == 3
        return StepResult(STILL if observe else None, float(solved), solved, False, solved)


def test_actions_after_the_end_are_neither_executed_nor_counted() -> None:
    world: Any = Short()

    segment = EpisodePlayer(world, PlannedEpisode(0, 1, "go")).run(np.zeros((8, 7)))

    assert world.steps == segment.steps == 3
    assert segment.done and segment.success and segment.reward == 1.0 and segment.observation is None


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"action_spec": ActionSpec((replace(POSITION, unit=1.0), ROTATION, GRIPPER))},
            "unit of position is 1.0 in",
        ),
        ({"action_spec": ABSOLUTE}, "delta of rotation is False in the policy's actions, and True in the env"),
        ({"proprio_dim": 7}, "the policy's proprio has 7"),
        ({"cameras": ("agentview", "left")}, r"needs the cameras \['left'\]"),
    ],
)
def test_a_policy_of_another_world_is_refused(changed: dict[str, Any], named: str) -> None:
    check_policy_fits(make_processor(), cubes_spec(32))

    with pytest.raises(InputError, match=named):
        check_policy_fits(replace(make_processor(), **changed), cubes_spec(32))
