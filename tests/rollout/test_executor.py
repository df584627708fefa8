"""From chunks to executed actions, and the statistics of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas.data.sampling.randomness import sample_keys
from atlas.errors import InputError
from atlas.policies.modular.policy import ModularPolicy
from atlas.rollout.actor import AblatedActor, Actor
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import PlannedEpisode, episode_seed, plan_episodes
from atlas.rollout.evaluation import Evaluator, evaluate_checkpoint
from atlas.rollout.input_recorder import InputRecorder, RecordedActor
from atlas.rollout.proportions import wilson_interval
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.system.process_control.threads import one_thread
from atlas.types import Batch, Observation
from tests.policies.test_policy import HORIZON, SIZE, make_policy, make_processor

STILL = Observation(
    {c: np.full((SIZE, SIZE, 3), 7, np.uint8) for c in ("agentview", "eye_in_hand")}, np.zeros(8, np.float32), "go"
)
HEADS = {"regression": "model.head.name=regression", "flow": "model.head={name: flow_matching, dim: 16, layers: 1}"}
WAYS = {"first actions": (2, None), "ensemble": (1, 0.5)}


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than networks as small as these."""
    with one_thread():
        yield


class CountingPolicy:
    """Its n-th answer says in dimension 0 the number n and in dimension 1 the place in the chunk."""

    def __init__(self) -> None:
        self.processor = make_processor()
        self.asked = 0
        self.keys: list[int] = []

    def parameters(self):  # type: ignore[no-untyped-def]
        return iter([torch.zeros(1)])

    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        assert batch.key is not None
        self.keys += batch.key.tolist()
        chunk = torch.zeros(len(batch), HORIZON, 7)
        chunk[..., 0] = self.asked
        chunk[..., 1] = torch.arange(HORIZON)
        self.asked += 1
        return chunk


def acted(executor: ChunkExecutor, plans: int) -> np.ndarray:
    """What a single episode executes, [steps, A]."""
    return np.concatenate([executor.plan({0: STILL})[0] for _ in range(plans)])


def test_the_first_actions_are_executed_before_the_policy_is_asked_again() -> None:
    executor = ChunkExecutor(CountingPolicy(), execute=3)

    executed = acted(executor, plans=2)[:, :2].tolist()

    assert executed == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_a_new_episode_forgets_the_old_ones_chunks() -> None:
    executor = ChunkExecutor(CountingPolicy(), execute=3, ensemble=0.0)
    acted(executor, plans=1)

    executor.reset(0, seed=0)

    assert acted(executor, plans=1)[0, 0] == 1


def test_temporal_ensembling_averages_what_the_chunks_say_about_now() -> None:
    executor = ChunkExecutor(CountingPolicy(), execute=2, ensemble=0.5)

    now = acted(executor, plans=3)[2]

    weights = np.exp(-0.5 * np.arange(3))  # the oldest first
    assert now[0] == pytest.approx((weights * [0, 1, 2]).sum() / weights.sum())
    assert now[1] == pytest.approx((weights * [2, 1, 0]).sum() / weights.sum())


def test_old_chunks_that_do_not_reach_now_are_forgotten() -> None:
    executor = ChunkExecutor(CountingPolicy(), execute=1, ensemble=0.0)

    now = acted(executor, plans=HORIZON + 3)[-1]

    last = HORIZON + 2
    assert now[0] == pytest.approx(np.mean(range(last - HORIZON + 1, last + 1)))


def test_episodes_have_states_of_their_own() -> None:
    executor = ChunkExecutor(CountingPolicy(), execute=1, ensemble=0.0)
    executor.plan({4: STILL})

    both = executor.plan({4: STILL, 9: STILL})

    # The answers 0 and 1 averaged, and the answer 2: each is asked by itself.
    assert both[4][0, 0] == 0.5 and both[9][0, 0] == 2


def acting(head: str) -> ModularPolicy:
    """A policy as training would have changed it: what starts at zero in a head is not zero any more."""
    policy = make_policy("keypoints", HEADS[head]).eval()
    with torch.no_grad():
        for parameter in policy.head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy


def seen_by(number: int) -> Observation:
    """What one of several episodes sees."""
    images = {camera: (image * (number + 1)).astype(np.uint8) for camera, image in STILL.images.items()}
    return Observation(images, np.full(8, number / 4, np.float32), f"do number {number}")


def play(executor: ChunkExecutor, seeds: Mapping[int, int], rounds: int = HORIZON + 2) -> dict[int, np.ndarray]:
    """What episodes (worker: seed) that run side by side execute, [steps, A] each."""
    for worker, seed in seeds.items():
        executor.reset(worker, seed)
    planned = [executor.plan({worker: seen_by(seed) for worker, seed in seeds.items()}) for _ in range(rounds)]
    return {seed: np.concatenate([plan[worker] for plan in planned]) for worker, seed in seeds.items()}


@pytest.mark.parametrize(("execute", "ensemble"), WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("head", HEADS)
def test_a_rollout_does_not_depend_on_the_episodes_beside_it(head: str, execute: int, ensemble: float | None) -> None:
    policy = acting(head)

    together = play(ChunkExecutor(policy, execute, ensemble), {0: 1, 1: 2, 2: 3})
    elsewhere = play(ChunkExecutor(policy, execute, ensemble), {5: 3, 1: 1})
    executor = ChunkExecutor(policy, execute, ensemble)
    one_by_one = play(executor, {0: 2}) | play(executor, {0: 1})

    assert together[1].shape == (execute * (HORIZON + 2), 7)
    for alone in (elsewhere, one_by_one):
        for seed, actions in alone.items():
            np.testing.assert_allclose(actions, together[seed], rtol=1e-4, atol=1e-4)


def test_a_generative_policy_draws_anew_for_each_chunk_and_each_seed() -> None:
    executor = ChunkExecutor(acting("flow"), execute=1)

    def acted_with(seed: int) -> np.ndarray:
        executor.reset(0, seed)
        return acted(executor, plans=3)

    first = acted_with(seed=1)

    assert not np.allclose(first[0], first[1]) and not np.allclose(acted_with(seed=2), first)
    np.testing.assert_array_equal(acted_with(seed=1), first)


def test_a_regression_policy_needs_no_seed() -> None:
    executor = ChunkExecutor(acting("regression"), execute=1)
    first = acted(executor, plans=1)

    executor.reset(0, seed=8)

    np.testing.assert_array_equal(acted(executor, plans=1), first)


def test_an_evaluation_asks_with_its_episodes_seeds() -> None:
    """One worker plays two episodes, and the second starts from its own seed."""
    policy = CountingPolicy()
    episodes = [PlannedEpisode(i, seed, "pick up the red cube") for i, seed in enumerate((11, 12))]
    evaluator = Evaluator("cubes", SIZE, workers=1)

    try:
        outcomes = evaluator.run(ChunkExecutor(policy, execute=HORIZON), episodes, title=None)
    finally:
        evaluator.close()

    chunks = -(-outcomes[0].length // HORIZON)
    expected = [sample_keys(0, torch.full((chunks,), episode.seed), torch.arange(chunks)) for episode in episodes]
    assert [outcome.length for outcome in outcomes] == [outcomes[0].length] * 2
    assert sorted(policy.keys) == sorted(torch.cat(expected).tolist())


class Asked:
    """Instead of the simulators: keeps what they would have been asked to play, and for how many actions at once."""

    episodes: Sequence[PlannedEpisode]
    actions: int

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def run(self, actor: Actor, episodes: Sequence[PlannedEpisode], *_: Any, **__: Any) -> list[EpisodeOutcome]:
        Asked.episodes, Asked.actions = episodes, len(actor.plan({0: STILL})[0])
        return [EpisodeOutcome(e.instruction, e.seed, True, 1.0, 10) for e in episodes]

    def close(self) -> None:
        pass


def test_a_saved_policy_is_evaluated_on_episodes_of_nobody_else_three_quarters_of_a_chunk_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting("regression").save_pretrained(tmp_path)
    monkeypatch.setattr("atlas.rollout.evaluation.Evaluator", Asked)
    used = {episode_seed(purpose, 3, i) for purpose in ("record", "selection", "final") for i in range(4)}

    report = evaluate_checkpoint(tmp_path, "cubes", episodes=4, seed=3)

    seeds = [outcome.seed for outcome in report.outcomes]
    assert seeds == [episode.seed for episode in Asked.episodes] == [episode_seed("report", 3, i) for i in range(4)]
    assert report.purpose == "report" and not used & set(seeds)
    assert Asked.actions == HORIZON * 3 // 4
    evaluate_checkpoint(tmp_path, "cubes", episodes=1, execute=HORIZON)
    assert Asked.actions == HORIZON


def test_more_actions_than_there_are_cannot_be_executed() -> None:
    with pytest.raises(InputError, match=f"from 1 to {HORIZON}"):
        ChunkExecutor(CountingPolicy(), execute=HORIZON + 1)
    with pytest.raises(InputError, match="negative"):
        ChunkExecutor(CountingPolicy(), execute=1, ensemble=-1.0)


@given(st.integers(0, 60), st.integers(1, 60))
def test_the_wilson_interval_holds_the_rate_and_shrinks_with_evidence(successes: int, more: int) -> None:
    episodes = max(successes, 1)
    low, high = wilson_interval(successes, episodes)
    narrow = wilson_interval(successes * (more + 1), episodes * (more + 1))

    assert 0 <= low <= successes / episodes <= high <= 1
    assert narrow[1] - narrow[0] < high - low


def test_the_wilson_interval_of_a_known_case() -> None:
    assert wilson_interval(97, 100) == pytest.approx((0.9155, 0.9897), abs=1e-3)


def test_a_report_counts_by_instruction() -> None:
    outcomes = [
        EpisodeOutcome(f"lift {i % 2}", i, success=i % 4 == 0, reward=float(i % 4 == 0), length=10 + i)
        for i in range(8)
    ]
    report = EvaluationReport("cubes", "run/best", tuple(outcomes))

    found, metrics = report.to_dict(), report.metrics()

    assert (found["episodes"], found["successes"], found["success_rate"]) == (8, 2, 0.25)
    assert found["per_instruction"]["lift 0"]["success_rate"] == 0.5
    assert found["per_instruction"]["lift 1"]["successes"] == 0
    assert metrics["eval/success_rate/lift_0"] == 0.5 and metrics["eval/mean_reward"] == 0.25
    assert metrics["eval/episode_length"] == found["mean_episode_length"] == 13.5


def test_no_two_purposes_share_an_episode() -> None:
    purposes = ("record", "selection", "final", "report")
    seeds = [episode_seed(p, s, i) for p in purposes for s in (0, 1, 999_999) for i in (0, 1, 999_999)]

    assert len(set(seeds)) == len(seeds)


def test_planned_episodes_are_balanced_over_the_instructions() -> None:
    planned = plan_episodes("cubes", 10, "report", seed=0)

    counts = {text: sum(e.instruction == text for e in planned) for text in {e.instruction for e in planned}}
    assert list(counts.values()) == [5, 5]


def test_an_ablation_changes_what_is_told_and_not_what_is_true() -> None:
    """And what is recorded is what the policy was told: its first observation of each episode is known as such."""
    recorder = InputRecorder()
    told = RecordedActor(ChunkExecutor(CountingPolicy(), execute=2), recorder)
    actor = AblatedActor(told, ("go", "stay"), shuffle_instructions=True, blind=True)
    actor.reset(4, seed=1)

    for _ in range(2):
        actor.plan({4: STILL})

    assert recorder.instructions == {"stay"} and recorder.starts.tolist() == [True, False]
    assert not any(recorder.start_images(camera).any() for camera in STILL.images)
    assert recorder.actions[:, 0].tolist() == [0, 0, 1, 1]
    assert STILL.instruction == "go" and STILL.images["agentview"].all()
