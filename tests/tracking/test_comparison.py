"""Runs side by side: what differs, how far metrics got, and when a difference in success counts as one."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_runs import write_evaluation, write_run

import atlas
from atlas.drawing.comparison_plot import draw, save_plot, smooth
from atlas.errors import InputError
from atlas.rollout.proportions import (
    episodes_to_see,
    fisher_p,
    holm,
    mcnemar_p,
    paired_interval,
    unpaired_interval,
    wilson_interval,
)
from atlas.runs.comparison import Comparison, better_direction, compare_runs
from atlas.runs.paired_success import SuccessComparison
from atlas.runs.run_directory import Run, read_named, read_run
from tests.test_vertical_slice import run_atlas

# ---- statistics ------------------------------------------------------------------------------------------


def test_mcnemar_is_the_exact_binomial_test_of_the_telling_episodes() -> None:
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(5, 0) == mcnemar_p(0, 5) == 2 / 2**5
    assert mcnemar_p(6, 0) == 2 / 2**6  # six to none is the least that is a difference at 5%
    assert mcnemar_p(3, 3) == 1  # both tails together would be more than one
    assert mcnemar_p(1, 7) == 2 * (1 + 8) / 2**8
    assert mcnemar_p(2, 8) == 2 * (1 + 10 + 45) / 2**10
    assert mcnemar_p(6, 16) == pytest.approx(0.0525, abs=5e-5)  # 2 (1 + 22 + … + 74613) / 2^22


def test_intervals_are_those_of_the_papers() -> None:
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe (1998), table I
    assert paired_interval(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)  # Fagerland (2017), ch. 8
    assert paired_interval(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)  # the same
    assert unpaired_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)  # Newcombe (1998), table II
    low, high = paired_interval(20, 0, 0, 0)  # nothing ever failed
    assert low == pytest.approx(-high) and 0 < high < 0.2


def test_fishers_test_sums_the_tables_that_are_no_more_probable() -> None:
    assert fisher_p(3, 4, 1, 4) == pytest.approx(34 / 70)  # the lady tasting tea, two-sided
    assert fisher_p(5, 5, 5, 5) == 1
    assert fisher_p(10, 10, 0, 10) == pytest.approx(2 / math.comb(20, 10))


def test_holm_multiplies_the_smallest_by_all_and_the_next_by_one_less() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # adjusted values never fall
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def draw_pairs(rng: np.random.Generator, times: int, episodes: int, first: float, second: float) -> np.ndarray:
    """Of `times` comparisons: in how many episodes just the one or the other succeeds. int64 [times, 2]"""
    return rng.multinomial(episodes, [first, second, 1 - first - second], size=times)[:, :2]


@pytest.mark.parametrize(("episodes", "telling"), [(40, 0.4), (200, 0.2)])
def test_equal_policies_are_called_different_in_at_most_five_of_a_hundred_comparisons(
    episodes: int, telling: float
) -> None:
    counts = draw_pairs(np.random.default_rng(0), 4000, episodes, telling / 2, telling / 2)
    called = np.mean([mcnemar_p(int(a), int(b)) < 0.05 for a, b in counts])
    assert 0.005 < called <= 0.05


def test_with_several_equal_policies_a_difference_is_claimed_in_at_most_five_of_a_hundred_comparisons() -> None:
    rng = np.random.default_rng(1)
    claimed = 0
    for _ in range(1000):
        runs = rng.random((5, 40)) < 0.5
        pairs = [(a, b) for a in range(5) for b in range(a)]
        p = [mcnemar_p(int((runs[a] & ~runs[b]).sum()), int((runs[b] & ~runs[a]).sum())) for a, b in pairs]
        claimed += min(holm(p)) < 0.05
    assert claimed / 1000 < 0.05


def test_the_paired_interval_holds_the_difference_in_about_95_of_a_hundred_cases() -> None:
    rng = np.random.default_rng(2)
    both, first, second, neither = 0.4, 0.25, 0.1, 0.25
    tables = rng.multinomial(40, [both, first, second, neither], size=3000)
    bounds = [paired_interval(*map(int, table)) for table in tables]
    held = np.mean([low <= first - second <= high for low, high in bounds])
    assert 0.935 < held < 0.98


@pytest.mark.parametrize(("first", "second"), [(0.25, 0.10), (0.05, 0.0), (0.2, 0.4)])
def test_with_as_many_episodes_as_are_named_a_difference_is_found_in_80_of_a_hundred_cases(
    first: float, second: float
) -> None:
    episodes = episodes_to_see(first, second)
    assert episodes is not None
    rng = np.random.default_rng(3)

    def found(episodes: int) -> float:
        return float(np.mean([mcnemar_p(*map(int, c)) < 0.05 for c in draw_pairs(rng, 4000, episodes, first, second)]))

    assert 0.77 < found(episodes) < 0.84
    assert found(episodes * 3 // 4) < 0.77


def test_the_number_of_episodes_is_the_same_either_way_round_and_grows_as_the_difference_shrinks() -> None:
    assert episodes_to_see(0.2, 0.1) == episodes_to_see(0.1, 0.2)
    needed = [episodes_to_see(0.1 + d, 0.1) for d in (0.2, 0.1, 0.05, 0.02, 0.002, 0.001)]
    assert needed == sorted(needed, key=lambda n: n or 0)
    assert episodes_to_see(0.2, 0.2) is None
    assert (episodes_to_see(0.2, 0.1) or 0) < (episodes_to_see(0.2, 0.1, level=0.01) or 0)


# ---- success of runs -------------------------------------------------------------------------------------


def evaluated(tmp_path: Path, **outcomes: str) -> list[Run]:
    """Runs by their outcomes, such as '1101'."""
    runs = []
    for name, text in outcomes.items():
        run = write_run(tmp_path / name)
        write_evaluation(run, [letter == "1" for letter in text])
        runs.append(read_run(run))
    return runs


def success_of(runs: list[Run]) -> SuccessComparison:
    success = compare_runs(runs).success
    assert success is not None
    return success


def test_two_runs_on_the_same_episodes_are_compared_as_pairs(tmp_path: Path) -> None:
    runs = evaluated(tmp_path, good="1" * 30 + "0" * 10, bad="1" * 20 + "0" * 9 + "1" + "0" * 10)

    (pair,) = success_of(runs).pairs

    assert (pair.telling, pair.episodes, pair.difference) == ((9, 0), (40, 40), 0.225)
    assert pair.p == 2 / 2**9 and pair.differs
    assert pair.verdict == "good succeeds more often"
    assert pair.interval == paired_interval(21, 9, 0, 10)


def test_a_difference_that_may_be_chance_is_not_called_one_and_it_is_said_what_would_be_needed(tmp_path: Path) -> None:
    runs = evaluated(tmp_path, a="1" * 20 + "0" * 20, b="1" * 14 + "0" * 24 + "1" * 2)

    (pair,) = success_of(runs).pairs

    assert pair.telling == (6, 2) and pair.p == pytest.approx(0.289, abs=5e-4)
    needed = episodes_to_see(6 / 40, 2 / 40)
    assert needed is not None
    assert pair.verdict == (
        f"no difference can be claimed from these 40 episodes; about {needed - 40} more would be needed to see one of "
        "this size at 80% power"
    )


def test_equal_success_is_no_difference(tmp_path: Path) -> None:
    (pair,) = success_of(evaluated(tmp_path, a="1100", b="0110")).pairs
    assert pair.verdict == "no difference can be claimed from these 4 episodes; both succeed equally often"


def test_the_p_values_of_several_pairs_are_adjusted(tmp_path: Path) -> None:
    runs = evaluated(tmp_path, a="1" * 7 + "0" * 13, b="0" * 20, c="0" * 20)

    pairs = {(pair.first, pair.second): pair for pair in success_of(runs).pairs}

    assert mcnemar_p(7, 0) < 0.05
    assert pairs["a", "b"].p == 3 * mcnemar_p(7, 0) and not math.isclose(pairs["a", "b"].p, mcnemar_p(7, 0))
    assert pairs["a", "b"].differs and not pairs["b", "c"].differs
    six = success_of(evaluated(tmp_path / "six", a="1" * 6 + "0" * 14, b="0" * 20, c="0" * 20)).pairs[0]
    assert mcnemar_p(6, 0) < 0.05 < six.p and six.verdict.startswith("no difference can be claimed")


def test_runs_on_different_episodes_are_not_compared_as_pairs(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    write_evaluation(a, [True] * 12 + [False] * 8)
    write_evaluation(b, [True] * 4 + [False] * 6, first_seed=1000)

    success = success_of([read_run(a), read_run(b)])

    (pair,) = success.pairs
    assert pair.telling is None and pair.episodes == (20, 10)
    assert pair.p == fisher_p(12, 20, 4, 10) and pair.interval == unpaired_interval(12, 20, 4, 10)
    assert pair.verdict == "no difference can be claimed from 20 and 10 different episodes"
    assert any("atlas eval --seed 0 --out FILE" in note for note in success.notes)


def test_where_one_was_tried_on_more_episodes_those_that_both_have_count(tmp_path: Path) -> None:
    (pair,) = success_of(evaluated(tmp_path, a="1111" + "0" * 36, b="0111")).pairs
    assert pair.episodes == (4, 4) and pair.telling == (1, 0)


def test_success_in_different_worlds_is_not_compared(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    write_evaluation(a, [True, False])
    write_evaluation(b, [True, False], env="libero_goal")
    success = success_of([read_run(a), read_run(b)])
    assert success.pairs == [] and "are not compared" in success.notes[0]


def test_the_final_evaluation_counts_where_all_have_one_and_else_the_last_during_training(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    for run in (a, b):
        write_evaluation(run, [True, True], "selection", step=10)
        write_evaluation(run, [True, False], "selection", step=20)
    write_evaluation(a, [False, False], "final", step=10)

    success = success_of([read_run(a), read_run(b)])
    assert {name: (each.purpose, each.step) for name, each in success.evaluations.items()} == {
        "a": ("selection", 20),
        "b": ("selection", 20),
    }
    assert success.notes == [
        "No final evaluation of b: the last ones during training are compared (a at step 20, b at step 20)."
    ]

    write_evaluation(b, [True, True], "final", step=20)
    success = success_of([read_run(a), read_run(b)])
    assert {each.purpose for each in success.evaluations.values()} == {"final"} and success.notes == []


def test_an_evaluation_with_a_probe_and_a_run_without_one_are_pointed_out(tmp_path: Path) -> None:
    a, b, c = (write_run(tmp_path / name) for name in "abc")
    write_evaluation(a, [True])
    write_evaluation(b, [True], probes=["blind"])
    assert success_of([read_run(run) for run in (a, b, c)]).notes == [
        "c has not been evaluated.",
        "b was evaluated with blind.",
    ]


def test_outcome_files_are_compared_in_place_of_runs(tmp_path: Path) -> None:
    files = [
        write_evaluation(write_run(tmp_path / name), [True, success], "report")
        for name, success in (("a", True), ("b", False))
    ]
    comparison = compare_runs(read_named([str(file) for file in files]))
    assert comparison.names == ["a/report_step_00000010", "b/report_step_00000010"]
    assert comparison.success is not None and comparison.success.pairs[0].telling == (1, 0)
    assert comparison.metrics == {} and comparison.config == {}


# ---- settings, metrics, ranking ----------------------------------------------------------------------------


def curves(loss: list[float], **more: float) -> dict[str, list[tuple[int, float]]]:
    found = {"val/loss": [(10 * (i + 1), value) for i, value in enumerate(loss)]}
    return found | {name.replace("__", "/"): [(10, value)] for name, value in more.items()}


def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    a = read_run(write_run(tmp_path / "a", "training.learning_rate=0.001", "model.head.name=regression"))
    b = read_run(write_run(tmp_path / "b", "training.learning_rate=0.01", "model.head.name=flow_matching"))

    config = compare_runs([a, b]).config

    assert config["training.learning_rate"] == {"a": 0.001, "b": 0.01}
    assert config["model.head.name"] == {"a": "regression", "b": "flow_matching"}
    assert config["model.head.pose_loss"] == {"a": "l1"}  # the other head has no such key
    assert "run_name" not in config and not any(key.startswith("data.") for key in config)


def test_metrics_have_their_latest_and_their_best_value(tmp_path: Path) -> None:
    a = read_run(write_run(tmp_path / "a", curves=curves([0.5, 0.2, math.nan, 0.3], val__gripper_accuracy=0.9)))
    b = read_run(write_run(tmp_path / "b", curves=curves([0.6], custom__thing=1.0)))

    comparison = compare_runs([a, b])

    assert list(comparison.metrics) == ["val/loss"]  # what both have, of those that are shown by default
    loss = comparison.metrics["val/loss"]
    assert loss.better == "lower"
    reached = loss.runs["a"]
    assert reached is not None and (reached.latest_step, reached.best_step) == (40, 20)
    assert (reached.latest, reached.best) == (pytest.approx(0.3), pytest.approx(0.2))

    asked = compare_runs([a, b], ["val/gripper_accuracy", "custom/thing"]).metrics
    assert asked["val/gripper_accuracy"].better == "higher" and asked["val/gripper_accuracy"].runs["b"] is None
    assert asked["custom/thing"].better is None
    thing = asked["custom/thing"].runs["b"]
    assert thing is not None and (thing.latest, thing.best) == (1.0, None)


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("val/pick_up_the_red_cube/position_error_mm", "lower"),
        ("eval/success_rate/pick_up_the_red_cube", "higher"),
        ("timer/data", "lower"),
        ("train/lr", None),
        ("eval/episode_length", None),
    ],
)
def test_the_better_direction_is_known_for_known_metrics(metric: str, better: str | None) -> None:
    assert better_direction(metric) == better


def test_an_unknown_metric_is_named_with_the_nearest(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a"))
    with pytest.raises(InputError, match=r"--metric val/los: none of the runs has logged it\. Did you mean 'val/loss'"):
        compare_runs([run], ["val/los"])


def test_a_run_that_has_logged_nothing_cannot_be_compared(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", curves={"train/loss": []}))
    with pytest.raises(InputError, match="no metric has been logged"):
        compare_runs([run])


def ranked(comparison: Comparison) -> tuple[str, list[str]]:
    assert comparison.ranking is not None
    return comparison.ranking.metric, [name for name, _ in comparison.ranking.runs]


def test_runs_are_ranked_by_final_success_or_else_by_the_first_metric_or_as_is_asked(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", curves=curves([0.3, 0.5], val__gripper_accuracy=0.7))
    b = write_run(tmp_path / "b", curves=curves([0.4], val__gripper_accuracy=0.9))
    c = write_run(tmp_path / "c", curves={"val/loss": [(10, math.nan)], "val/gripper_accuracy": [(10, 0.8)]})

    def runs() -> list[Run]:
        return [read_run(run) for run in (a, b, c)]

    assert ranked(compare_runs(runs())) == ("val/loss", ["a", "b", "c"])
    asked = compare_runs(runs(), rank_by=("val/gripper_accuracy", "higher"))
    assert ranked(asked) == ("val/gripper_accuracy", ["b", "c", "a"])
    for run, outcomes in ((a, [False, False]), (b, [True, False]), (c, [True, True])):
        write_evaluation(run, outcomes)
    assert ranked(compare_runs(runs())) == ("eval/success_rate", ["c", "b", "a"])


# ---- the picture -----------------------------------------------------------------------------------------


def test_smoothing_follows_without_a_bias_to_the_start() -> None:
    assert smooth([2.0] * 100) == pytest.approx([2.0] * 100)
    noise = np.random.default_rng(0).normal(5, 1, 1000)
    late = np.array(smooth([*map(float, noise)]))[200:]
    assert late.std() < 0.3 and abs(late.mean() - 5) < 0.2
    assert smooth([1.0, math.nan, 1.0]) == [1, 1, 1]


def test_the_picture_has_a_panel_a_metric_and_one_of_success(tmp_path: Path) -> None:
    long = {"val/loss": [(step, 1 / step) for step in range(1, 200)], "val/gripper_accuracy": [(5, 0.5)]}
    runs = []
    for name, outcomes in (("one", [True, False]), ("two", [True, True])):
        folder = write_run(tmp_path / name, curves=long)
        write_evaluation(folder, outcomes)
        runs.append(read_run(folder))
    comparison = compare_runs(runs)

    figure = draw(comparison, runs)

    loss, accuracy, success = figure.axes
    assert loss.get_title() == "val/loss (lower is better)" and loss.get_xlabel() == "train/step"
    assert len(loss.lines) == 4  # each run's curve, raw and smoothed
    assert len(accuracy.lines) == 2
    assert [bar.get_height() for bar in success.patches] == [0.5, 1.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]

    for name in ("picture.png", "picture.svg", "folder/picture.pdf"):
        save_plot(comparison, runs, tmp_path / name)
    assert Image.open(tmp_path / "picture.png").width > 1000
    assert (tmp_path / "picture.svg").read_text().lstrip().startswith("<?xml")
    assert (tmp_path / "folder" / "picture.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(InputError, match=r"--plot x\.gif: the name should end in \.png, \.svg or \.pdf"):
        save_plot(comparison, runs, Path("x.gif"))


# ---- the command -----------------------------------------------------------------------------------------


def run_in(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command, run in a folder of the test's."""
    paths = [str(Path(atlas.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return run_atlas([*arguments], check=check, cwd=folder, env=environment)


def test_the_command_prints_tables_or_one_json_object_and_draws(tmp_path: Path) -> None:
    for name, rate, outcomes in (("a", 0.001, "1" * 12), ("b", 0.01, "1" * 4 + "0" * 8)):
        run = write_run(tmp_path / "outputs" / name, f"training.learning_rate={rate}", curves=curves([0.4]))
        write_evaluation(run, [letter == "1" for letter in outcomes])

    shown = run_in(tmp_path, "runs", "compare", "a", "b", "--plot", "plot.png").stdout
    told = json.loads(run_in(tmp_path, "runs", "compare", "a", "outputs/b", "--json").stdout)

    for text in ("training.learning_rate", "val/loss", "8 : 0", "a succeeds more often", "plot.png"):
        assert text in shown
    assert (tmp_path / "plot.png").exists()
    assert told["runs"] == ["a", "b"] and told["config"]["training.learning_rate"] == {"a": 0.001, "b": 0.01}
    assert told["metrics"]["val/loss"]["runs"]["a"]["latest_step"] == 10
    assert told["success"]["pairs"][0]["p"] == 2 / 2**8 and told["success"]["pairs"][0]["differs"]
    assert told["success"]["runs"]["b"]["successes"] == 4
    assert [rank["run"] for rank in told["ranking"]["runs"]] == ["a", "b"]


def test_a_wrong_run_is_one_message_and_exit_2(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    for arguments, message in ((["a"], "at least two"), (["a", "a"], "named twice"), (["a", "none"], "no run 'none'")):
        done = run_in(tmp_path, "runs", "compare", *arguments, check=False)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
