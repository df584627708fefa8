"""Reports of evaluations: what is chosen of them to be shown, and the files they are kept in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.errors import InputError
from atlas.rollout.proportions import wilson_interval
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport, highlights
from atlas.rollout.verdicts.robustness import mean_interval


def outcome(seed: int, success: bool, length: int, reward: float | None = None) -> EpisodeOutcome:
    return EpisodeOutcome("pick it up", seed, success, float(success) if reward is None else reward, length)


def test_the_best_the_median_and_the_worst_episode() -> None:
    """Success before reward before speed."""
    outcomes = [
        outcome(1, False, 200),
        outcome(2, True, 90),
        outcome(3, False, 30),
        outcome(4, True, 40),
        outcome(5, False, 200, reward=0.5),
    ]

    chosen = {name: o.seed for name, o in highlights(outcomes).items()}

    assert chosen == {"best": 4, "median": 5, "worst": 1}


def test_of_equal_episodes_the_earlier_is_the_better() -> None:
    chosen = highlights([outcome(seed, False, 200) for seed in range(4)])

    assert {name: o.seed for name, o in chosen.items()} == {"best": 0, "median": 1, "worst": 3}


def test_of_few_episodes_none_is_chosen_twice() -> None:
    assert list(highlights([outcome(1, True, 10)])) == ["best"]
    assert {name: o.seed for name, o in highlights([outcome(1, False, 9), outcome(2, True, 10)]).items()} == {
        "best": 2,
        "worst": 1,
    }


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=3, max_size=9))
def test_no_episode_is_better_than_the_best_and_as_many_on_either_side_of_the_median(
    episodes: list[tuple[bool, int]],
) -> None:
    outcomes = [outcome(seed, success, length) for seed, (success, length) in enumerate(episodes)]
    chosen = highlights(outcomes)

    def rank(o: EpisodeOutcome) -> tuple[int, int]:
        return int(not o.success), o.length

    ranks = [rank(o) for o in outcomes]
    assert rank(chosen["best"]) == min(ranks) and rank(chosen["worst"]) == max(ranks)
    median = rank(chosen["median"])
    assert sum(r < median for r in ranks) <= (len(ranks) - 1) // 2 and sum(r > median for r in ranks) <= len(ranks) // 2
    assert len({o.seed for o in chosen.values()}) == 3


def report() -> EvaluationReport:
    outcomes = (outcome(10, True, 40), outcome(11, False, 200))
    return EvaluationReport("cubes", "runs/a", outcomes, "final", step=3900, seed=7, probes=("blind",))


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "evaluations" / "final.json"

    report().save(file)

    assert EvaluationReport.load(file) == report()
    assert list(file.parent.iterdir()) == [file]


def test_the_file_holds_the_table_and_every_outcome(tmp_path: Path) -> None:
    report().save(tmp_path / "final.json")

    found = json.loads((tmp_path / "final.json").read_text())

    assert found.items() >= report().to_dict().items()
    assert (found["purpose"], found["step"], found["seed"]) == ("final", 3900, 7)
    first = {"seed": 10, "instruction": "pick it up", "success": True, "reward": 1.0, "length": 40}
    assert found["outcomes"][0] == first and len(found["outcomes"]) == found["episodes"] == 2


def test_what_is_printed_for_machines_has_exactly_the_promised_keys() -> None:
    keys = "env checkpoint episodes successes success_rate ci95 mean_episode_length per_instruction"

    assert set(report().to_dict()) == set(keys.split())


def test_the_same_starts_under_more_levels_are_no_more_evidence() -> None:
    def played(*successes: bool) -> list[EpisodeOutcome]:
        return [outcome(seed, success, 10) for seed, success in enumerate(successes)]

    level = played(*[True, True, True, False] * 5)
    low, high = mean_interval([level])
    again = mean_interval([level] * 5)
    assert (low, high) == wilson_interval(15, 20)
    assert again == mean_interval([level] * 5) and again[0] <= 0.75 <= again[1]
    assert again[1] - again[0] == pytest.approx(high - low, abs=0.06)  # pooled, it would be half as wide
    mixed = mean_interval([level, played(*[False, True, True, True] * 5)])
    assert mixed[0] < 0.75 < mixed[1] and mixed[1] - mixed[0] < again[1] - again[0]  # starts that differ less
    assert mean_interval([played(True, True)] * 3) == pytest.approx(wilson_interval(2, 2))  # nothing to draw
    with pytest.raises(ValueError, match="inhomogeneous"):
        mean_interval([played(True), played(True, False)])


@pytest.mark.parametrize("text", ["{}", "[1]", "half of a fi", '{"outcomes": [3]}'])
def test_another_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)

    with pytest.raises(InputError, match=r"other\.json"):
        EvaluationReport.load(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"absent\.json"):
        EvaluationReport.load(tmp_path / "absent.json")
