"""What learning shows: films with what was thought of each decision, distributions, and where it has been."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gymnasium", reason="the small worlds are gymnasium's: pip install 'atlas-vla[gym]'")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atlas.config import load_config
from atlas.drawing.experience_plots import draw_decisions, draw_valued_map
from atlas.errors import InputError
from atlas.learning.boards.evaluation_board import EvaluationBoard
from atlas.learning.boards.experience_map import project
from atlas.learning.experience_replay import Column, Replay
from atlas.learning.on_policy.grpo import learn_grpo
from atlas.learning.on_policy.ppo import learn_ppo
from atlas.learning.run_config import config_from_nothing
from atlas.learning.sac_run import learn_here
from atlas.policies.action_distribution import CorrectedActions, GaussianActions
from atlas.rollout.filming.decision_curves import DecisionCurve
from atlas.rollout.filming.films import FilmDrawing
from atlas.types import ActionSpec
from tests.learning.bandit import NAME

PENDULUM = "gym:Pendulum-v1?horizon=8"
TINY = ["model.fusion.dim=16", "learning.held_out_episodes=2", "training.log_interval=1"]


def board(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "learner" / "tensorboard"))
    found.Reload()
    return found


def test_sac_shows_what_its_critics_think_and_where_it_has_been(
    tmp_path: Path, atlas: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["steps=48", "random_steps=8", "training_starts=8", "batch_size=4", "width=8", "eval_episodes=3"]
    settings = [*TINY, *[f"learning.sac.{each}" for each in few], f"output_dir={tmp_path}"]

    learn_here(config_from_nothing("sac", PENDULUM, settings), PENDULUM)

    shown = board(tmp_path / "Pendulum-v1-sac").Tags()
    ranks = ("best", "median", "worst")
    assert {*(f"eval/video_{rank}" for rank in ranks), *(f"eval/decisions_{rank}" for rank in ranks)} <= {
        *shown["images"]
    }
    assert "experience/states" in shown["images"]
    wanted = {"sac/q_values", "sac/q_targets", "eval/return_distribution", "eval/length_distribution"}
    assert wanted <= {*shown["histograms"]}
    assert len(list((tmp_path / "Pendulum-v1-sac" / "videos").rglob("*.mp4"))) == 3
    _check_map(tmp_path / "Pendulum-v1-sac", atlas, capsys)


def _check_map(run: Path, atlas: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """Its replay on a plane, as `atlas learn map` draws it."""
    capsys.readouterr()
    assert atlas("learn", "map", str(run), "--json", "--frames", "20") == 0

    found = json.loads(capsys.readouterr().out)
    assert found["decisions"] == 48 and found["shown"] == 20
    assert found["pictures"].keys() == {"by_time", "by_return", "by_value"}
    assert all(Image.open(path).size == (840, 500) for path in found["pictures"].values())
    assert atlas("learn", "map", str(run), "--frames", "3") == 2
    assert atlas("learn", "map", str(run.parent)) == 2
    (run / "learning.json").write_text(json.dumps({"algorithm": "ppo"}))
    shutil.rmtree(run / "checkpoints")
    assert atlas("learn", "map", str(run)) == 2
    said = capsys.readouterr().err
    assert "there must be 4 at least" in said and "no run of atlas learn" in said and "ppo keeps none" in said


def test_ppo_shows_values_and_grpo_how_likely_its_actions_are(tmp_path: Path) -> None:
    out = [*TINY, f"output_dir={tmp_path}"]
    few = [f"learning.ppo.{each}" for each in ("steps=16", "worlds=1", "decisions=8", "eval_episodes=1", "epochs=1")]
    learn_ppo(config_from_nothing("ppo", PENDULUM, [*out, *few]), PENDULUM)
    few = [f"learning.grpo.{each}" for each in ("steps=64", "groups=4", "group_size=8", "eval_episodes=1")]
    only = "logging.media.vis_dataset.interval=0"
    learn_grpo(config_from_nothing("grpo", NAME, [*out, *few, only]), NAME)

    ppo, grpo = (board(tmp_path / name).Tags() for name in ("Pendulum-v1-ppo", "Bandit-v0-grpo"))
    assert {"ppo/values", "ppo/value_targets"} <= {*ppo["histograms"]}
    assert {"eval/decisions_best", "eval/video_best", "experience/states"} <= {*ppo["images"]}
    assert {"eval/decisions_best"} <= {*grpo["images"]} and "experience/states" not in grpo["images"]


def test_what_fails_to_be_shown_is_switched_off_and_learning_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(EvaluationBoard, "_filmed", breaks)
    monkeypatch.setattr("atlas.learning.boards.experience_map.project", breaks)
    few = [f"learning.ppo.{each}" for each in ("steps=16", "worlds=1", "decisions=8", "eval_episodes=1", "epochs=1")]
    few += ["learning.ppo.eval_interval=8", f"output_dir={tmp_path}"]

    with caplog.at_level(logging.WARNING):
        result = learn_ppo(config_from_nothing("ppo", PENDULUM, [*TINY, *few]), PENDULUM)

    assert result.steps == 16
    said = [record.message for record in caplog.records if "switched off" in record.message]
    assert len(said) == 2 and all("the disk is full. Learning goes on." in each for each in said)


def test_a_curve_is_drawn_into_a_film_up_to_its_step() -> None:
    spec, actions = ActionSpec(), np.zeros((10, 7))
    curve = DecisionCurve("value", (0, 5), np.array([0.0, 1.0]), np.array([0.5, np.nan]), "target")
    black = np.zeros((128, 128, 3), np.uint8)
    plain = FilmDrawing("go", actions, spec, 128)
    drawing = FilmDrawing("go", actions, spec, 128, [curve, replace(curve, beside=None)])

    assert drawing.shape[0] > plain.shape[0] + 80 and drawing.shape[0] % 2 == 0
    early, late = (drawing.frame(black, step)[plain.shape[0] :].astype(int) for step in (2, 9))
    bright = [(frame.max(-1) > 200)[:, 64:].sum() for frame in (early, late)]
    assert bright[1] > bright[0] + 50  # the second half of the chart is not lit yet
    assert DecisionCurve("flat", (0,), np.array([3.0])).ends == (2.5, 3.5)
    assert draw_decisions([curve], np.zeros(10), "an episode").shape[2] == 3


def test_corrections_of_a_chunk_are_as_likely_as_what_was_drawn() -> None:
    gaussian = GaussianActions(torch.full((3, 1, 2), 0.4), torch.full((3, 1, 2), -1.0), squashed=True)
    corrected = CorrectedActions(torch.randn(3, 4, 2), gaussian, 0.2)
    drawn, log_prob = corrected.sample(torch.Generator().manual_seed(0))

    torch.testing.assert_close(corrected.log_prob(drawn), log_prob, atol=1e-4, rtol=1e-4)
    assert (corrected.log_prob(corrected.most_likely) > log_prob - 5).all()


def test_a_replay_gives_its_decisions_in_order_and_what_came_after_each() -> None:
    replay = Replay(8, {"x": Column((1,), "float32")}, 1)
    for episode in range(3):  # 4 rows each: the last two episodes are there, and the end of none before
        replay.begin({"x": np.array([10.0 * episode], np.float32)})
        then = {"x": 10 * episode + np.arange(1, 4, dtype=np.float32)[:, None]}
        replay.extend(np.zeros((3, 1), np.float32), np.array([1, 2, 3], np.float32), then, terminated=True)

    rows = replay.evenly(99)

    assert replay.observations_at(rows)["x"][:, 0].tolist() == [10, 11, 12, 20, 21, 22]
    assert replay.returns_from(rows).tolist() == [6, 5, 3, 6, 5, 3]
    assert replay.observations_at(replay.evenly(3))["x"][:, 0].tolist() == [10, 12, 22]


def test_states_on_a_plane_count_every_number_alike() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(60, 3)) * np.array([1.0, 1e6, 1.0])
    found = project(features, "pca")

    assert found.points.shape == (60, 2) and "component 1 (3" in found.axes[0]  # about a third, not all of it
    values = np.where(np.arange(60) % 7 == 0, np.nan, features[:, 0])
    assert draw_valued_map(found.points, values, "reward", found.axes, "states").ndim == 3


@pytest.mark.parametrize(
    ("given", "kept"),
    [("q_value", ["q_value"]), ("[action_probability]", ["action_probability"]), ("{along_episodes: []}", [])],
)
def test_the_action_logger_says_what_is_drawn_along_episodes(given: str, kept: list[str]) -> None:
    assert (
        load_config(None, [f"logging.media.action_logger={given}"]).logging.media.action_logger.along_episodes == kept
    )


def test_an_action_logger_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="'q_value' or 'action_probability'"):
        load_config(None, ["logging.media.action_logger=v_value"])
