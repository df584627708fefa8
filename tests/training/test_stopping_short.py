"""A signal ends a step before it is validated and saved as due: the resumed run makes up for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas.prepare import load_run_config, prepare
from atlas.runs import read_scalars
from atlas.train import build_trainer, make_accelerator
from atlas.training.guards.signals import Interrupted
from tests.conftest import MakeLibero
from tests.test_processes import QUICK

STEPS = 6


@pytest.fixture
def settings_of(make_libero: MakeLibero, tmp_path: Path) -> Callable[[str], list[str]]:
    job = [*QUICK, f"data.path={make_libero()}", f"output_dir={tmp_path}", "distributed.cpu=true"]
    job += [f"training.max_steps={STEPS}", "training.val_interval=2", "checkpoint.save_interval=4"]
    return lambda name: [*job, f"run_name={name}"]


def train(settings: list[str], resume: str | None = None, stop_at: int | None = None) -> Path:
    """Train, or resume; a SIGTERM comes in the step `stop_at`."""
    prepared = prepare(load_run_config(None, settings, resume), resume)

    def beat(what: str) -> None:
        if stop_at is not None and what == f"step {stop_at - 1}":
            os.kill(os.getpid(), signal.SIGTERM)

    prepared.heartbeat.beat = beat  # type: ignore[method-assign]
    trainer = build_trainer(prepared, make_accelerator(prepared.config))
    try:
        if stop_at is None:
            trainer.train()
        else:
            with pytest.raises(Interrupted):
                trainer.train()
    finally:
        trainer.tracker.finish(0)
    return trainer.run_dir


@pytest.mark.parametrize("stop_at", [3, 4, STEPS])
def test_a_run_that_was_stopped_has_every_metric_of_one_that_was_not(
    settings_of: Callable[[str], list[str]], stop_at: int
) -> None:
    whole = train(settings_of("whole"))
    stopped = train(settings_of("stopped"), stop_at=stop_at)
    assert max(step for step, _ in read_scalars(stopped)["train/loss"]) == stop_at

    train(settings_of("stopped"), resume="auto")

    expected, found = read_scalars(whole), read_scalars(stopped)
    judged = {tag for tag in expected if tag.startswith(("train/", "val/", "best_model/"))} - {"train/restart"}
    assert "val/pose_l2_error" in judged
    assert {tag: found.get(tag) for tag in judged} == {tag: expected[tag] for tag in judged}
    assert (stopped / "checkpoints" / "best").resolve().name == (whole / "checkpoints" / "best").resolve().name


def test_what_was_made_up_for_is_not_counted_twice(settings_of: Callable[[str], list[str]]) -> None:
    """Stopped at a step with validation, resumed from there, and resumed from there once more."""
    settings = settings_of("run")
    run = train(settings, stop_at=4)
    checkpoint = (run / "checkpoints" / "latest").resolve()
    before = {file: file.read_bytes() for file in checkpoint.rglob("*") if file.is_file()}
    train(settings, resume="auto", stop_at=6)
    for file, content in before.items():  # as if it had been killed before it was saved
        file.write_bytes(content)

    train(settings, resume=str(checkpoint))

    assert [step for step, _ in read_scalars(run)["val/loss"]] == [2, 4, 6]
