"""Episodes end as they do whoever plays beside them, in whichever order, and when a worker dies meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from atlas.environments.cubes import INSTRUCTIONS as CUBES
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import PlannedEpisode, plan_episodes
from atlas.rollout.evaluation import Evaluator
from atlas.rollout.success_report import EpisodeOutcome
from atlas.rollout.workers import WorkerDied
from tests.policies.test_policy import SIZE, make_policy
from tests.rollout.drift_world import DIES
from tests.rollout.sites import install

EPISODES = 40


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "drift", "atlas.environments", "drift = tests.rollout.drift_world:WORLD")


def play(
    planned: Sequence[PlannedEpisode], workers: int, env: str = "drift", execute: int = 4
) -> dict[int, EpisodeOutcome]:
    """{seed: outcome} of an untrained policy."""
    evaluator = Evaluator(env, SIZE, workers)
    try:
        outcomes = evaluator.run(ChunkExecutor(make_policy().eval(), execute), planned, title=None)
    finally:
        evaluator.close()
    return {outcome.seed: outcome for outcome in outcomes}


def test_any_number_of_workers_in_any_order_and_with_one_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    planned = plan_episodes("drift", EPISODES, "report", 0)
    alone = play(planned, workers=1)
    assert len({outcome.reward for outcome in alone.values()}) == EPISODES
    assert {outcome.success for outcome in alone.values()} == {True, False}

    assert play(planned[::-1], workers=2) == alone
    assert play([*planned[7:], *planned[:7]], workers=5) == alone
    assert caplog.records == []
    doomed = planned[4]
    (tmp_path / "dies").write_text(str(doomed.seed))
    monkeypatch.setenv(DIES, str(tmp_path / "dies"))
    with caplog.at_level(logging.WARNING):
        assert play(planned, workers=2) == alone
    (said,) = (record.getMessage() for record in caplog.records)
    assert not (tmp_path / "dies").exists()
    assert f"in episode 4 (seed {doomed.seed}, '{doomed.instruction}'): the episode begins again" in said


def test_an_episode_that_kills_every_worker_ends_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_episodes("drift", 2, "report", 0)
    (tmp_path / "always").write_text(str(planned[0].seed))
    monkeypatch.setenv(DIES, str(tmp_path / "always"))

    with pytest.raises(WorkerDied, match="exit code -9"):
        play(planned, workers=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cubes_too(tmp_path: Path) -> None:
    planned = plan_episodes("cubes", 3, "report", 0)
    assert planned[0].instruction in CUBES
    alone = play(planned, workers=1, env="cubes", execute=4)

    assert play(planned, workers=2, env="cubes", execute=4) == alone
    assert play(planned[::-1], workers=3, env="cubes", execute=4) == alone
