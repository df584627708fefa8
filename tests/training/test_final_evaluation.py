"""The end of a run: what its policy does deceived, blind and perturbed, and what the result carries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import atlas
from atlas.errors import InputError
from atlas.rollout.verdicts.reproduction import read_claim, reproduce
from atlas.runs import read_scalars
from tests.conftest import MakeLibero
from tests.rollout.sites import install


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_libero: MakeLibero) -> list[str]:
    """Two steps of training, for a world that takes no time."""
    install(tmp_path, monkeypatch, "drift", "atlas.environments", "drift = tests.rollout.drift_world:WORLD")
    return [
        f"data.path={make_libero()}",
        f"output_dir={tmp_path / 'outputs'}",
        "run_name=run",
        "data.image_size=16",
        "data.batch_size=4",
        "data.action_horizon=4",
        "data.num_workers=0",
        "model.vision={name: keypoints, width: 8, keypoints: 4}",
        "model.fusion={dim: 16, layers: 1}",
        "training.max_steps=2",
        "training.log_interval=1",
        "training.val_interval=2",
        "evaluation.env=drift",
        "evaluation.execute=2",
        "evaluation.episodes=2",
        "evaluation.final_episodes=6",
        "evaluation.video=0",
        "evaluation.workers=1",
        "distributed.cpu=true",
        "logging.media.vis_dataset.interval=0",
        *(f"logging.media.{kind}_logger.interval=0" for kind in ("episode", "gradient", "plot", "action")),
    ]


def test_a_run_says_what_it_does_deceived_blind_and_perturbed(job: list[str]) -> None:
    asked = ["evaluation.perturbations=[action_noise:2, blur:1-2]", "evaluation.perturbation_episodes=3"]

    run = atlas.train(None, [*job, *asked]).run_dir

    results = json.loads((run / "results.json").read_text())
    assert {name: found["episodes"] for name, found in results["probes"].items()} == {
        "instruction_shuffle": 2,
        "blind": 2,
    }
    levels = {name: sorted(found) for name, found in results["perturbations"].items()}
    assert levels == {"action_noise": ["2"], "blur": ["1", "2"]}
    assert results["robustness"]["unperturbed"]["episodes"] == 3
    scalars = read_scalars(run)
    assert {"eval/blind/success_rate", "eval/instruction_shuffle/success_rate"} <= scalars.keys()
    assert {"eval/blur/success_rate", "eval/blur/success_rate/level_2"} <= scalars.keys()
    log = (run / "train.log").read_text()
    assert "told another task" in log and "with black images" in log and "Success under perturbations" in log
    claim = read_claim(run / "results.json")
    assert claim.protocol.purpose == "final" and len(claim.outcomes) == 6 + 3 * 3
    state = json.loads((run / "checkpoints" / "best" / "trainer" / "state.json").read_text())
    assert results["evidence"]["dataset_fingerprint"] == state["dataset_fingerprint"] is not None

    assert reproduce(run / "results.json", workers=1).holds == "exactly"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("[blurr]", "Unknown perturbation 'blurr'. Did you mean 'blur'"),
        ("[camera_pose:1]", "'drift' does not support the perturbation 'camera_pose'"),
        ("[blur:9]", "'9' is not a level"),
    ],
)
def test_perturbations_are_checked_before_anything_is_trained(job: list[str], asked: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        atlas.train(None, [*job, f"evaluation.perturbations={asked}"])

    assert message in str(refused.value)


def test_perturbations_that_nothing_would_play_are_refused(job: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are played after training, and there are no rollouts then"):
        atlas.train(None, [*job, "evaluation.perturbations=[blur]", "evaluation.final_episodes=0"])

    assert not (tmp_path / "outputs").exists()
