"""The benchmarks that play or learn for an hour, with stand-ins for what is played: they run to the end, from arguments
to tables. And: no benchmark is without such a test."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas.checks.finding import Finding
from atlas.config import dump_yaml, load_config
from atlas.learning.improvement import Improvement
from atlas.learning.returns import OnlineResult
from atlas.prepare import prepare
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.train import build_trainer, make_accelerator
from tests.conftest import MakeLibero
from tests.policies.test_policy import make_policy
from tests.test_benchmarks import BENCHMARKS, rows
from tests.test_processes import QUICK

# What others start, which are in a test, and one that needs a package which is not installed for tests.
STARTED_BY_OTHERS = {"trainings", "pendulum_sb3"}
BY_REWARD = ("learning", "state_learning")


def outcomes(*successes: bool) -> tuple[EpisodeOutcome, ...]:
    return tuple(EpisodeOutcome("pick it up", seed, success, 1.0, 9) for seed, success in enumerate(successes))


class Evaluator:
    """Instead of simulators: the first episode succeeds, and no other."""

    asked: list[int] = []

    def __init__(self, *_: object, **__: object) -> None:
        self.asked.clear()

    def run(self, actor: object, planned: list[Any], title: str | None = None) -> list[EpisodeOutcome]:
        self.asked.append(len(planned))
        return list(outcomes(*(number == 0 for number in range(len(planned)))))

    def play(self, actor: object, planned: list[Any], title: str | None) -> list[SimpleNamespace]:
        return [SimpleNamespace(outcome=outcome) for outcome in self.run(actor, planned)]

    def close(self) -> None:
        pass


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[list[str]]]:
    def run(name: str, *arguments: object) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        importlib.import_module(name).main()
        return rows(capsys.readouterr().out)

    return run


def test_every_benchmark_runs_in_a_test() -> None:
    tests = "".join(file.read_text("utf-8") for file in (BENCHMARKS.parent / "tests").rglob("test_*.py"))
    commands = [file for file in BENCHMARKS.glob("*.py") if 'if __name__ == "__main__":' in file.read_text("utf-8")]
    assert len(commands) > 30
    started = r"(?:run\((?:\s*)\"{0}\"|import_module\(\"{0}\"\)|import {0}\b|\"{0}\.py\")"
    without = {file.stem for file in commands if not re.search(started.replace("{0}", file.stem), tests)}
    assert without - set(BY_REWARD) == STARTED_BY_OTHERS


def test_what_was_perturbed_already_is_not_played_again(
    run: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    robustness = importlib.import_module("robustness")
    monkeypatch.setattr(robustness, "Evaluator", Evaluator)
    monkeypatch.setattr(robustness, "load_actor", lambda *_: (SimpleNamespace(processor=make_policy().processor), 4))
    make_policy().save_pretrained(tmp_path / "policy")
    given = ["--policy", tmp_path / "policy", "--episodes", 2, "--out", tmp_path / "found.json"]

    first = run("robustness", *given, "--perturb", "blur:1,start_pose:4")
    played = list(Evaluator.asked)
    second = run("robustness", *given, "--perturb", "blur:1,blur:2,start_pose:4")

    assert played == [2, 2, 2] and Evaluator.asked == [2]  # as they are and twice; then the level that is new
    assert {row[0] for row in first[:2]} == {"blur", "start_pose"}
    means = {row[0]: row[1] for row in second}
    assert means["visual perturbations, levels 1 to 3"] == "2/4 (50%)"
    assert means["all perturbations, all levels"] == "3/6 (50%)"


def report(*successes: bool) -> EvaluationReport:
    return EvaluationReport("cubes", "policy", outcomes(*successes), "report", 1)


@pytest.mark.parametrize("name", BY_REWARD)
def test_what_learning_has_reached_is_a_row(
    name: str, run: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of what `atlas learn --json` prints: its own objects say it here."""
    benchmark = importlib.import_module(name)
    before, after = report(False, False, True), report(True, True, False)
    told = {
        "dagger": Improvement(tmp_path, "cubes", {"before": before, "after": after, "control": before}, 1200, 50),
        "grpo": OnlineResult(tmp_path, "grpo", "cubes", before, after, 2500, 60, 9, 1.0, "a policy", "it ran away"),
    }
    started: list[list[str]] = []

    def learned(command: list[str], **_: object) -> tuple[dict[str, Any], float, float]:
        started.append(command)
        algorithm = command[command.index("learn") + 1]
        return json.loads(json.dumps(told[algorithm].to_dict())), 2.0, 60.0

    monkeypatch.setattr(benchmark, "timed", learned)
    monkeypatch.setattr("subprocess.run", lambda command, **_: started.append(command) or SimpleNamespace(stdout=""))
    algorithms = ["dagger", "grpo"] if name == "learning" else ["grpo"]

    found = run(name, "--algorithms", ",".join(algorithms), "--out", tmp_path, "learning.grpo.steps=2500")

    assert [row[0].partition(",")[0] for row in found] == algorithms
    if name == "learning":
        assert found[0][1:5] == ["50 (1,200)", "1/3", "1/3", "2/3"] and found[0][5].startswith(
            "2 / 1 (p" if 0 else "2 / 1"
        )
    assert "60 (2,500)" in found[-1] and "33%" in found[-1] and "67%" in found[-1] and "it ran away" in found[-1][0]
    for command in started:  # the settings of all that is started are known
        words = command[command.index("atlas.cli") + 1 :]
        assert words[0] in ("train", "learn", "data")
        load_config(None, [word for word in words if re.match(r"[a-z_.]+=", word)])


def test_each_plant_is_played_or_checked_and_told(
    run: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch, make_libero: MakeLibero, tmp_path: Path
) -> None:
    planted = importlib.import_module("planted")
    folder, data = tmp_path / "run", ("--data", make_libero())
    make_policy().save_pretrained(folder / "checkpoints" / "best" / "policy")
    (folder / "config.yaml").write_text(dump_yaml(load_config({}, ["data.image_size=32", "data.action_horizon=4"])))
    named = Finding("gripper", "error", "its sign is flipped", "flip it", bugs=("gripper",))
    monkeypatch.setattr(planted, "Evaluator", Evaluator)
    monkeypatch.setattr(planted, "make_environment", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(planted, "diagnose", lambda *_: [named])
    monkeypatch.setattr(
        planted, "CHECKS", [("gripper", planted.CHECKS[[n for n, _ in planted.CHECKS].index("gripper")][1])]
    )

    found = run(
        "planted", folder, *data, "--episodes", 2, "--data-episodes", 2, "--only", "gripper: 0 to 1", "dropout left on"
    )

    cells = {row[0]: row[1:] for row in found}
    assert cells["gripper: 0 to 1"][0] == "1/2" and cells["gripper: 0 to 1"][2] == "`atlas eval --diagnose`"
    assert cells["dropout left on"][2:4] == ["**nobody**", "gripper"]
    assert cells["data: gripper: 0 to 1"][2] == "`atlas data check`, training"


def test_a_process_trains_by_itself_beside_others(make_libero: MakeLibero, tmp_path: Path) -> None:
    """What scaling.py compares with; it reaches into the trainer, whose parts may have been renamed."""
    scaling = importlib.import_module("scaling")
    folders = [f"data.path={make_libero()}", f"output_dir={tmp_path}", "run_name=run", "distributed.cpu=true"]
    prepared = prepare(load_config(None, [*QUICK, *folders]))
    trainer = build_trainer(prepared, make_accelerator(prepared.config))
    trainer.tracker.finish(0)
    trainer.consensus._several, model = True, trainer.model

    with scaling.by_itself(trainer):
        assert trainer.model is trainer.policy and not trainer.consensus._several

    assert trainer.model is model and trainer.consensus._several
