"""A resumed run is the run that was begun: its sums, its samples, its learning rate and its validation."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from atlas.checkpoints import load_state
from atlas.checkpoints.contents import load_split
from atlas.config import TrainingConfig
from atlas.data.formats import open_dataset
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.sampling.kept_split import episode_identities
from atlas.prepare import load_run_config, prepare
from atlas.runs import read_scalars
from atlas.train import build_trainer, make_accelerator
from atlas.training import Trainer
from atlas.training.guards.signals import Interrupted
from atlas.training.optimizer import learning_rate
from tests.conftest import made_up_episode
from tests.test_vertical_slice import SMALL

STEPS = 4
PEAK = 1e-3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of ten episodes, in a file each."""
    root = tmp_path_factory.mktemp("data") / "demos"
    for number, task in enumerate(("open the drawer", "close the drawer")):
        rng = np.random.default_rng(number)
        episodes = [made_up_episode(rng, task, 9, i) for i in range(10)]
        write_libero_file(root / f"{number}_demo.hdf5", task, episodes, {"env_name": "elsewhere"})
    return root


def settings(data: Path, out: Path, *more: str) -> list[str]:
    """All steps are logged together, at the end."""
    job = [*SMALL, f"data.path={data}", f"output_dir={out}", "distributed.cpu=true", "evaluation.env=none"]
    job += [f"training.max_steps={STEPS}", f"training.log_interval={STEPS}", "training.val_interval=100"]
    return [*job, "data.val_fraction=0.3", f"training.learning_rate={PEAK}", "training.warmup_steps=0", *more]


def built(settings: list[str], resume: str | None = None, stop_at: int | None = None) -> Trainer:
    """A trainer, to which a SIGTERM comes in the step `stop_at`."""
    prepared = prepare(load_run_config(None, settings, resume), resume)

    def beat(what: str) -> None:
        if stop_at is not None and what == f"step {stop_at - 1}":
            os.kill(os.getpid(), signal.SIGTERM)

    prepared.heartbeat.beat = beat  # type: ignore[method-assign]
    return build_trainer(prepared, make_accelerator(prepared.config))


def run(trainer: Trainer) -> None:
    try:
        trainer.train()
    except Interrupted:
        pass
    finally:
        trainer.tracker.finish(0)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trainer = built(settings(data, tmp_path_factory.mktemp("whole"), "run_name=run"))
    run(trainer)
    return trainer.run_dir


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the four steps, before any of them was logged; to be copied."""
    trainer = built(settings(data, tmp_path_factory.mktemp("stopped"), "run_name=run"), stop_at=3)
    run(trainer)
    assert trainer.state.step == 3 and "train/loss" not in read_scalars(trainer.run_dir)
    return trainer.run_dir


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run", symlinks=True))


def test_what_was_added_up_before_the_stop_is_logged_after_it(data: Path, whole: Path, copy: Path) -> None:
    run(built(settings(data, copy.parent, "run_name=run"), "auto"))

    expected, found = read_scalars(whole), read_scalars(copy)
    for name in ("train/loss", "train/pose_loss", "train/gripper_loss", "val/loss"):
        assert found[name] == expected[name] and len(found[name]) == 1, name


def test_with_another_batch_and_length_it_goes_on_at_the_same_sample_and_rate(
    data: Path, whole: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the samples nor the learning rate start again or jump."""
    read, original = [], ChunkDataset.__getitems__

    def note(dataset: ChunkDataset, samples: list[tuple[int, int]]) -> object:
        if dataset is trainer.train_data:
            read.extend(samples)
        return original(dataset, samples)

    longer = settings(data, copy.parent, "run_name=run", "data.batch_size=4", "training.max_steps=6")
    trainer = built([*longer, "training.log_interval=1"], "auto")
    monkeypatch.setattr(ChunkDataset, "__getitems__", note)
    run(trainer)

    unbroken = built(settings(data, whole.parent, "run_name=another"))
    stream = [
        (int(time), int(index)) for step in range(5) for time, index in unbroken.schedule.order.step_samples(step)
    ]
    unbroken.tracker.finish(0)
    assert [(int(time), int(index)) for time, index in read] == stream[3 * 8 : 3 * 8 + 3 * 4]
    rates = dict(read_scalars(copy)["train/lr"])
    assert rates[4] == pytest.approx(dict(read_scalars(whole)["train/lr"])[4])
    assert rates[5] == rates[6] == pytest.approx(PEAK / 100)
    (said,) = [r.getMessage() for r in caplog.records if "schedule_on_resume" in r.getMessage()]
    assert "was planned for 4 steps, and now for 6" in said and "keeps to its 4 steps" in said
    state = load_state(copy / "checkpoints" / "latest")
    assert (state.step, state.max_steps, state.rate_steps) == (6, 6, 4)


def test_a_schedule_can_be_stretched(data: Path, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    longer = settings(data, copy.parent, "run_name=run", "training.max_steps=8")
    trainer = built([*longer, "training.schedule_on_resume=stretch"], "auto")
    trainer.tracker.finish(0)

    assert trainer.schedule.rate_steps == trainer.schedule.max_steps == 8
    rates = [learning_rate(3, steps, 0, TrainingConfig(learning_rate=PEAK)) for steps in (4, 8)]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert f"stretched to 8: {rates[1]:.3g} at step 4; keep would make it {rates[0]:.3g}" in said


def test_a_dataset_that_has_grown_leaves_every_episode_on_its_side(
    data: Path, copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files were added and renamed, so that all episodes have other numbers."""
    grown = tmp_path / "grown"
    shutil.copytree(data, grown)
    (grown / "0_demo.hdf5").rename(grown / "9_demo.hdf5")
    rng = np.random.default_rng(9)
    added = [made_up_episode(rng, "open the drawer", 9, i) for i in range(20)]
    write_libero_file(grown / "5_demo.hdf5", "open the drawer", added, {"env_name": "elsewhere"})
    kept = load_split(copy / "checkpoints" / "latest")
    assert kept is not None and (len(kept.training), len(kept.validation)) == (14, 6)

    asked = settings(grown, copy.parent, "run_name=run", "training.data_on_resume=changed")
    trainer = built(asked, "auto")
    run(trainer)

    identities = episode_identities(open_dataset(grown))
    train, val = identities[trainer.train_data.episodes], identities[trainer.val_data.episodes]
    assert set(kept.validation) <= set(val) and set(kept.training) <= set(train) and not set(train) & set(val)
    assert len(val) == 9 + 3  # 30% of 30 and of 10
    assert any("20 episodes of 40 are new" in record.getMessage() for record in caplog.records)
    after = load_split(copy / "checkpoints" / "latest")
    assert after is not None and set(after.validation) == set(val) and set(after.training) == set(train)
