"""Losses that are not finite, and runs that do not get better."""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from atlas.checkpoints import Contents
from atlas.config import Config, EarlyStoppingConfig, load_config
from atlas.environments.catalog import environment_spec
from atlas.environments.environment import EnvironmentSpec
from atlas.errors import InputError
from atlas.prepare import prepare
from atlas.runs import read_scalars
from atlas.train import build_trainer, make_accelerator, run
from atlas.training import Trainer
from atlas.training.checkpoint_manager import NotSaved
from atlas.training.guards.skipping import NotFinite
from atlas.training.judging.selection import EarlyStopping, check_metrics
from atlas.types import ActionSpec, Batch, LossTerms
from tests import warm
from tests.conftest import MakeLibero
from tests.test_processes import QUICK

CUBES = environment_spec("cubes")


@pytest.fixture
def trainer_of(make_libero: MakeLibero, tmp_path: Path) -> Callable[..., Trainer]:
    data = make_libero()

    def make(*overrides: str) -> Trainer:
        settings = [*QUICK, f"data.path={data}", f"output_dir={tmp_path}", "distributed.cpu=true", *overrides]
        prepared = prepare(load_config(None, settings))
        return build_trainer(prepared, make_accelerator(prepared.config))

    return make


def poison(trainer: Trainer, when: Callable[[int], bool]) -> None:
    """Make the loss NaN in the steps (from 1) that `when` says."""
    forward = trainer.policy.forward

    def poisoned(batch: Batch) -> LossTerms:
        terms = forward(batch)
        if trainer.policy.training and when(trainer.state.step + 1):
            terms.loss = terms.loss * math.nan
        return terms

    trainer.policy.forward = poisoned  # type: ignore[method-assign]


def test_a_step_whose_loss_is_not_finite_is_left_out(
    trainer_of: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of("training.max_steps=6", "run_name=nan")
    poison(trainer, lambda step: step in (2, 4))
    seen: list[torch.Tensor] = []
    after_backward, weight = trainer.timer.step_done, next(p for p in trainer.policy.parameters() if p.requires_grad)

    def remember() -> None:
        seen.append(weight.detach().clone())
        after_backward()

    trainer.timer.step_done = remember  # type: ignore[method-assign]
    trainer.train()
    trainer.tracker.finish(0)

    unchanged = [torch.equal(a, b) for a, b in pairwise(seen)]
    assert unchanged == [True, False, True, False, False]
    scalars = read_scalars(trainer.run_dir)
    assert [v for _, v in scalars["train/skipped_steps"]] == [0, 1, 1, 2, 2, 2]
    assert all(math.isfinite(v) for _, v in scalars["val/loss"])
    (first, second) = [r.getMessage() for r in caplog.records if "is left out" in r.getMessage()]
    assert first.startswith("Step 2 ") and second.startswith("Step 4 ")
    samples = trainer.schedule.order.rank_samples(0, 1)
    episode, frame = trainer.train_data.place(samples[0])
    assert re.search(rf"episode {episode} frame [\d, ]*\b{frame}\b", first), first


def test_too_many_in_a_row_end_training_with_a_checkpoint_from_before(trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of("training.max_steps=20", "training.max_skipped_steps=3", "run_name=lost")
    poison(trainer, lambda step: step in (2, 3) or step > 5)

    with pytest.raises(NotFinite, match="checkpoint of step 5"):
        trainer.train()
    trainer.tracker.finish(1)

    latest = (trainer.run_dir / "checkpoints" / "latest").resolve()
    assert latest.name == "step_00000005"
    state = json.loads((latest / "trainer" / "state.json").read_text())
    assert state["samples_seen"] == 5 * trainer.schedule.order.samples_a_step and state["skipped_steps"] == 5


POISONED = """
import math, sys
from atlas.train import build_trainer, make_accelerator
from atlas.training.prepared_run import PreparedRun
from atlas.config import load_config

config = load_config(sys.argv[1])
accelerator = make_accelerator(config)
trainer = build_trainer(PreparedRun(config), accelerator)
forward = trainer.policy.forward

def poisoned(batch):
    terms = forward(batch)
    if trainer.policy.training and trainer.state.step == 1 and accelerator.process_index == 1:
        terms.loss = terms.loss * math.inf
    return terms

trainer.policy.forward = poisoned
trainer.train()
trainer.tracker.finish(0)
accelerator.end_training()
"""


def test_all_ranks_leave_out_a_step_that_one_cannot_take(make_libero: MakeLibero, tmp_path: Path) -> None:
    settings = [*QUICK, f"data.path={make_libero()}", f"output_dir={tmp_path}", "run_name=two", "training.max_steps=4"]
    prepare(load_config(None, [*settings, "distributed.cpu=true"]))
    script = tmp_path / "poisoned.py"
    script.write_text(POISONED)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    done = warm.run(*torchrun, str(script), str(tmp_path / "two" / "config.yaml"), children=2)

    assert done.returncode == 0, done.stderr
    scalars = read_scalars(tmp_path / "two")
    assert [v for _, v in scalars["train/skipped_steps"]] == [0, 1, 1, 1]
    assert [math.isfinite(v) for _, v in scalars["train/grad_norm"]] == [True, False, True, True]
    (line,) = [line for line in done.stderr.splitlines() if "is left out" in line]
    assert re.search(r"rank 0 had the loss 0\.\d+ with episode .*rank 1 had the loss inf with episode", line), line


def values(metric: str, numbers: list[float]) -> list[dict[str, float]]:
    return [{metric: number} for number in numbers]


def test_patience_ends_after_so_many_values_without_a_better_one() -> None:
    stopping = EarlyStopping(EarlyStoppingConfig(metric="val/loss", patience=2))
    losses = [1.0, 0.9, 0.95, 0.8, math.nan, 0.85]
    assert [stopping.enough(m) for m in values("val/loss", losses)] == [False] * 5 + [True]
    assert "0.8" in stopping.reason()


def test_success_is_better_when_it_rises_and_other_metrics_do_not_count() -> None:
    stopping = EarlyStopping(EarlyStoppingConfig(metric="eval/success_rate", patience=1, min_delta=0.05))
    assert not stopping.enough({"eval/success_rate": 0.5})
    assert not stopping.enough({"val/loss": 3.0})
    assert not stopping.enough({"eval/success_rate": 0.6})
    assert stopping.enough({"eval/success_rate": 0.62})


def test_a_run_that_does_not_get_better_ends_early_with_its_last_checkpoint(
    make_libero: MakeLibero, tmp_path: Path
) -> None:
    """With a learning rate of almost nothing the loss stays; the second half of patience is a resumed run's."""
    data = make_libero()
    stopping = "training.early_stopping={metric: val/loss, patience: 3, min_delta: 0.5}"
    settings = [*QUICK, f"data.path={data}", f"output_dir={tmp_path}", "run_name=flat", stopping]
    settings += ["training.learning_rate=1e-9", "training.val_interval=2", "distributed.cpu=true"]
    run_of(settings, "training.max_steps=4")
    result = run_of(settings, "training.max_steps=30", resume="auto")

    assert (result / "checkpoints" / "latest").resolve().name == "step_00000008"
    assert "has not improved" in (result / "train.log").read_text()
    assert (result / "results.json").exists()


def run_of(settings: list[str], *more: str, resume: str | None = None) -> Path:
    return run(prepare(load_config(None, [*settings, *more]), resume)).run_dir


@pytest.mark.parametrize(
    ("overrides", "env", "message"),
    [
        (["training.early_stopping={metric: val/los}"], CUBES, "val/los.*Did you mean 'val/loss'"),
        (["model_management.best_model_metric=custom/x"], CUBES, "custom/x"),
        (["training.early_stopping={metric: eval/success_rate}"], None, "no rollouts"),
        (["training.early_stopping={metric: eval/success_rate}"], replace(CUBES, judged=False), "use eval/mean_reward"),
        (["training.early_stopping={metric: val/joint_error_deg}"], CUBES, "joint_error_deg', which .* not measure"),
    ],
)
def test_a_metric_that_is_never_measured_is_refused(
    overrides: list[str], env: EnvironmentSpec | None, message: str
) -> None:
    config: Config = load_config({}, overrides)
    with pytest.raises(InputError, match=message):
        check_metrics(config, ActionSpec(), ["open the drawer"], env)


def test_a_full_disk_costs_checkpoints_and_not_the_training(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of("training.max_steps=6", "checkpoint.save_interval=2", "run_name=full")
    write = trainer.checkpoint_manager.checkpoints.write

    def full(contents: Contents) -> Path:
        if contents.state.step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(contents)

    monkeypatch.setattr(trainer.checkpoint_manager.checkpoints, "write", full)
    trainer.train()
    trainer.tracker.finish(0)

    assert {2, 6} <= set(trainer.checkpoint_manager.checkpoints.steps())
    with pytest.raises(NotSaved, match=r"step 4 could not be written.*No space left"):
        trainer.checkpoint_manager.check()


def test_the_end_after_a_full_disk_is_exit_code_1(make_libero: MakeLibero, tmp_path: Path) -> None:
    """Files may have no more than a few bytes: of the run, only small ones can be written."""
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    start = "from atlas.cli import main; sys.argv[0] = 'atlas'; main()"
    settings = [*QUICK, f"data.path={make_libero()}", f"output_dir={tmp_path}", "run_name=full", "training.max_steps=3"]

    done = warm.run("-c", limit + start, "train", "--cpu", *settings)

    assert done.returncode == 1
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "full" / "checkpoints").glob(".step_*"))
