"""Which images a policy sees: augmented ones while it learns, and the recorded ones when it is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from atlas.config import load_config
from atlas.data.sampling.order import validation_batches
from atlas.prepare import prepare
from atlas.train import build_trainer, make_accelerator
from atlas.training import Trainer
from tests.conftest import MakeLibero
from tests.test_processes import QUICK


@pytest.fixture
def trainer(make_libero: MakeLibero, tmp_path: Path) -> Trainer:
    """Of one step and a validation, with changes that nobody can overlook."""
    changes = "data.augment={shift: 0.1, brightness: 0.5, contrast: 0.5, saturation: 0.5, zoom: 0.2, turn_deg: 20, "
    changes += "drop_view: 0.5}"
    folders = [f"data.path={make_libero()}", f"output_dir={tmp_path}", "run_name=images"]
    steps = ["training.max_steps=1", "training.val_interval=1", "distributed.cpu=true"]
    prepared = prepare(load_config(None, [*QUICK, *folders, *steps, changes]))
    return build_trainer(prepared, make_accelerator(prepared.config))


def test_images_are_changed_for_learning_and_left_as_they_are_for_judging(trainer: Trainer) -> None:
    shown: list[tuple[bool, torch.Tensor]] = []

    def watch(vision: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        shown.append((vision.training, given[0].clone()))

    with trainer.strategy.judged() as averaged:  # another policy than the one that learns
        averaged.vision.register_forward_pre_hook(watch)
    trainer.policy.vision.register_forward_pre_hook(watch)
    trainer.train()
    trainer.tracker.finish(0)

    learned, judged = ([images for training, images in shown if training is on] for on in (True, False))
    batch = trainer.train_data.__getitems__(trainer.schedule.order.step_samples(0))
    recorded = batch.unit_images()
    (changed,) = learned
    torch.testing.assert_close(changed, trainer.augment(recorded, replace(batch, images=recorded)))
    assert ((changed - recorded).abs().mean((1, 2, 3, 4)) > 0.02).all()  # every sample, and not by a little

    share = validation_batches(len(trainer.val_data), trainer.config.data.batch_samples, 0, 1)
    assert len(judged) == len(share) > 0
    for samples, images in zip(share, judged, strict=True):
        assert torch.equal(images, trainer.val_data.__getitems__(samples).unit_images())


def test_validation_is_read_by_workers_like_training(trainer: Trainer) -> None:
    trainer.config = trainer.config.model_copy(
        update={"data": trainer.config.data.model_copy(update={"num_workers": 2, "batch_size": 2})}
    )

    share, loader = trainer._val_batches()
    trainer.tracker.finish(0)

    assert len(share) >= 2 and loader.num_workers == 2
