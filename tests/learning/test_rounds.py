"""`atlas learn dagger` and `rft`: a policy acts, what is worth it is kept, and it is trained on that."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atlas.config import load_config
from atlas.data.formats import open_dataset
from atlas.environments.cubes import CubesEnvironment
from atlas.errors import InputError
from atlas.learning.imitation.dagger import Dagger
from atlas.learning.imitation.exploration import NoisyActor
from atlas.learning.imitation.round_experience import RoundExperience
from atlas.learning.imitation.rounds import learn
from atlas.learning.improvement import Improvement
from atlas.learning.run_config import config_of_run
from atlas.policies.base import load_policy
from atlas.registry import resolve_policy
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.evaluation import Evaluator
from atlas.rollout.experience import Played, as_recorded
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.rollout.verdicts.evidence import policy_hash
from atlas.rollout.verdicts.reproduction import read_claim
from atlas.runs import read_scalars
from atlas.system.documents import read_json
from atlas.tracking import RunTracker
from atlas.train import train
from atlas.training.guards.signals import Interrupted
from atlas.types import ActionSpec, Observation
from tests.learning.conftest import SILENT
from tests.rollout.sites import install
from tests.test_vertical_slice import SMALL

FEW = ["learning.held_out_episodes=1", "learning.round_episodes=0", "evaluation.workers=1"]
LITTLE = ["rounds=1", "episodes=1", "steps=1", "warmup_steps=0"]


class Still:
    """An actor that does nothing, four steps at a time."""

    processor = None

    def reset(self, episode: int, seed: int) -> None:
        pass

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        return {number: np.zeros((4, 7), np.float32) for number in observations}


def shown_on(folder: Path) -> set[str]:
    """What there is on a run's board besides scalars."""
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return {*board.Tags()["images"], *board.Tags()["histograms"]}


@pytest.fixture
def run(first_run: Path) -> Path:
    return first_run


@pytest.fixture
def shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs, in which the made-up worlds are known."""
    for name, world in (("shelf", "SHELF"), ("bare_shelf", "BARE"), ("tall_shelf", "TALL")):
        line = f"{name} = tests.learning.shelf_world:{world}"
        install(tmp_path, monkeypatch, name.replace("_", ""), "atlas.environments", line)
    return tmp_path


def test_the_expert_ends_what_an_actor_has_begun() -> None:
    episodes = plan_episodes("cubes", 2, "explore", seed=0)

    with closing(Evaluator("cubes", 16, workers=1)) as evaluator:
        alone, ended = evaluator.play(Still(), episodes, record=True, title=None, hand_over={1: 3})

    assert not alone.outcome.success and alone.handed_over is None
    assert ended.outcome.success and ended.handed_over == 12
    assert ended.trace is not None and ended.trace.rewards.sum() == 1
    assert np.all(ended.trace.executed[:12] == 0) and np.any(ended.trace.executed[12])
    with closing(CubesEnvironment(16)) as world:
        recorded = as_recorded(world, Played(ended.trace, ended.outcome.instruction, ended.handed_over))
        first = world.reset(seed=episodes[1].seed, instruction=episodes[1].instruction)
        for _ in range(12):
            first = world.step(np.zeros(7)).observation
    assert len(recorded.actions) == ended.outcome.length - 12
    np.testing.assert_allclose(recorded.proprio[0], first.proprio, atol=1e-6)
    np.testing.assert_array_equal(recorded.images["agentview"][0], first.images["agentview"])


def test_dagger_leaves_experience_a_policy_and_a_verdict(
    run: Path, atlas: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*FEW, *[f"learning.dagger.{each}" for each in LITTLE], "learning.dagger.decisions=2"]
    settings += ["learning.round_episodes=1", "logging.media.vis_dataset.interval=1", "evaluation.probe_episodes=0"]

    asked = ["--checkpoint", str(run), "--env", "cubes", "--json", "--debug", "wandb.enabled=true"]
    code = atlas("learn", "dagger", *asked, *settings)

    found = json.loads(capsys.readouterr().out)
    folder = run.with_name("first-dagger")
    assert code == 0 and found["run"] == str(folder)
    assert not load_config(folder / "config.yaml").wandb.enabled
    assert found["success"].keys() == {"before", "after", "control"}
    kept = json.loads((folder / "experience" / "round_01" / "facts.json").read_text())["kept"]
    dataset = open_dataset(folder / "experience")
    assert len(dataset) == kept > 0 and dataset.environment == "cubes"
    scalars = read_scalars(folder)
    assert scalars["actor/total_steps"][-1][1] == found["env_steps"]
    assert scalars["Train/Reward_Mean"] == scalars["actor/episode_reward"]
    assert scalars["Val/Accuracy_Mean"] == scalars["eval/success_rate"] and "Val/Budget_Violation_Rate" in scalars
    assert (folder / "best" / "policy" / "model.safetensors").exists()
    assert {"eval/video_best", "eval/return_distribution"} <= shown_on(folder)
    assert "dataset/frames_by_source" in shown_on(folder / "rounds" / "round_01")
    assert len(list((folder / "videos" / "round_01").glob("best_*.mp4"))) == 1

    results = json.loads((folder / "results.json").read_text())
    assert results["evidence"]["policy_sha256"] == policy_hash(folder / "best" / "policy")
    assert results["evidence"]["dataset_fingerprint"] and results["evidence"]["protocol"]["execute"] == 4
    assert results["probes"] == {} and len(results["outcomes"]) == 1
    for name in ("before", "after", "control"):
        claim = read_claim(folder / "evaluations" / f"{name}.json")
        assert claim.policy_sha256 == policy_hash(resolve_policy(claim.checkpoint)) and claim.protocol.episodes == 1
    page = (folder / "report.html").read_text()
    assert f"atlas learn dagger --env cubes --checkpoint {run}" in page and "actor/avg_episode_reward_10" in page

    again = learn(config_of_run(str(run), "dagger", settings), "dagger", str(run), "cubes")

    assert again.to_dict() == found
    with pytest.raises(InputError, match=r"learns something else: settings was .*Choose another run_name"):
        other = config_of_run(str(run), "dagger", [*settings, "learning.dagger.steps=3"])
        learn(other, "dagger", str(run), "cubes")


def test_own_successes_are_imitated_checked_and_trained_on_and_a_worse_policy_is_not_the_best(
    run: Path, shelves: Path, atlas: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*FEW, *[f"learning.rft.{each}" for each in ("rounds=1", "episodes=4", "steps=2", "warmup_steps=0")]]
    settings += [f"output_dir={shelves}", "learning.held_out_episodes=2", *SILENT]
    asked = ("learn", "rft", "--checkpoint", str(run), "--env", "shelf", "--json", *settings)

    code = atlas(*asked)

    found, folder = json.loads(capsys.readouterr().out), shelves / "first-rft"
    assert code == 0 and found["episodes"] == 4 and found["success"]["after"]["successes"] == 2
    experience = folder / "experience"
    assert len(open_dataset(experience)) == 4 and found["kept"] == "after"
    trained = read_json(folder / "rounds" / "round_01" / "results.json")
    assert (
        trained["metrics"]["train/step"] == 2
        and str(experience) in (folder / "rounds" / "round_01" / "config.yaml").read_text()
    )
    assert atlas("data", "check", str(experience), "--env", "shelf", "--json") == 0, capsys.readouterr().out
    plain = [*SMALL, f"data.path={experience}", f"output_dir={shelves}", "run_name=plain", "training.max_steps=1"]
    train(None, [*plain, "evaluation.episodes=0", "evaluation.final_episodes=0"])

    # As if the policy of before had succeeded where that of after does not.
    after = EvaluationReport.load(folder / "evaluations" / "after.json")
    replace(after, outcomes=tuple(replace(o, success=False) for o in after.outcomes)).save(
        folder / "evaluations" / "after.json"
    )
    capsys.readouterr()
    assert atlas(*asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] == "before" and found["over_before"]["lost"] == 2
    kept, was = (load_policy(place).own_state_dict() for place in (folder / "best", run))
    assert all(torch.equal(kept[name], values) for name, values in was.items())


def test_a_round_that_is_stopped_keeps_its_episodes_and_goes_on(run: Path, shelves: Path) -> None:
    """In a world without LIBERO's proprio, whose episodes become a dataset in LeRobot's format."""
    episodes = plan_episodes("tall_shelf", 4, "explore", seed=0)
    where, begun = shelves / "round_01", list[int]()
    with closing(Evaluator("tall_shelf", 16, workers=1)) as evaluator:
        for stop in (2, None):
            experience = RoundExperience(where, "tall_shelf", "rft", lambda played: played.outcome.success)
            for episode in experience.missing(episodes)[:stop]:
                begun.append(episode.number)
                evaluator.play(Still(), [episode], record=True, title=None, keeper=experience)
            with (where / "played.jsonl").open("a") as file:
                file.write('{"number": ')  # as if it had been killed there
    experience.finish()

    assert begun == [0, 1, 2, 3] and experience.facts is not None
    assert experience.facts["kept"] == experience.facts["episodes"] == 4 and experience.facts["steps"] == 40
    dataset = open_dataset(where)
    assert len(dataset) == 4 and dataset.proprio_dim == 9 and not (where / ".parts").exists()


def test_without_a_success_there_is_nothing_to_imitate(run: Path, shelves: Path) -> None:
    settings = [*FEW, *[f"learning.rft.{each}" for each in LITTLE], f"output_dir={shelves}"]

    found = learn(config_of_run(str(run), "rft", settings), "rft", str(run), "bare_shelf")

    assert found.over_before.gained == found.over_before.lost == 0
    assert not (shelves / "first-rft" / "rounds").exists()


def test_a_run_that_fails_says_so_to_its_boards(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, finish = [], RunTracker.finish

    def noted(self: RunTracker, exit_code: int = 0, within: float | None = None) -> None:
        codes.append(exit_code)
        finish(self, exit_code, within)

    monkeypatch.setattr(RunTracker, "finish", noted)
    for number, (error, code) in enumerate(
        ((RuntimeError("no"), 1), (InputError("no"), 2), (KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143))
    ):

        def fail(*_: object, why: BaseException = error) -> None:
            raise why

        monkeypatch.setattr("atlas.learning.imitation.rounds.plan_episodes", fail)
        with pytest.raises(type(error)):
            learn(config_of_run(str(run), "rft", [*FEW, f"run_name=fails-{number}"]), "rft", str(run), "cubes")
        assert codes == [code]
        codes.clear()


def test_noise_is_the_episodes_own_and_leaves_grippers_alone() -> None:
    spec = ActionSpec()
    actors = [NoisyActor(Still(), spec, 0.1, shared) for shared in (0.0, 1.0)]
    draws = []
    for actor in (*actors, actors[0]):
        actor.reset(0, seed=3)
        draws.append(np.concatenate([actor.plan({0: None})[0] for _ in range(200)]))  # type: ignore[dict-item]

    own, shared, again = draws
    np.testing.assert_array_equal(own, again)
    assert np.all(own[:, 6] == 0) and np.all(shared[:, 6] == 0)
    assert own[:, :6].std() == pytest.approx(0.1, rel=0.1) and shared[:, :6].std() == pytest.approx(0.1, rel=0.1)
    assert np.all(shared[:4] == shared[0]) and not np.all(own[:4] == own[0])


def test_the_verdict_counts_starts_gained_and_lost() -> None:
    improvement = Improvement(
        Path("run"), "cubes", reports(before="0000110000", after="1111101111", control="0000110000"), 9, 1
    )

    assert (improvement.over_before.gained, improvement.over_before.lost) == (8, 1)
    assert improvement.over_before.p == pytest.approx(2 * 10 / 2**9)
    assert improvement.sentence().startswith("The policy has become better: 8 starts gained, 1 lost (p = 0.039)")
    worse = Improvement(Path("run"), "cubes", reports(before="11", after="10", control="11"), 9, 1)
    assert worse.worse and "The policy of before is kept as best" in worse.sentence()


def reports(**successes: str) -> dict[str, EvaluationReport]:
    return {
        what: EvaluationReport(
            "cubes", what, tuple(EpisodeOutcome("lift", i, s == "1", 0.0, 5) for i, s in enumerate(row))
        )
        for what, row in successes.items()
    }


def test_what_cannot_learn_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"is in no run's folder. Give a run"):
        config_of_run(str(tmp_path), "dagger", [])
    with pytest.raises(InputError, match="which is the run that is learned from"):
        config_of_run(str(run), "dagger", ["run_name=first"])
    with pytest.raises(InputError, match=r"Unknown environment 'cubs'.*cubes"):
        learn(config_of_run(str(run), "dagger", []), "dagger", str(run), "cubs")
    with pytest.raises(InputError, match="nowhere"):  # before anything is played
        learn(config_of_run(str(run), "dagger", ["data.path=nowhere", "run_name=unread"]), "dagger", str(run), "cubes")
    monkeypatch.setattr("atlas.learning.imitation.dagger.find_expert", lambda env: None)
    with pytest.raises(InputError, match=r"'somewhere' has no expert .* `atlas learn rft`"):
        Dagger(config_of_run(str(run), "dagger", []).learning.dagger, "somewhere")
