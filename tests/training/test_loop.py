"""What the training loop does to weights, and on whose episodes it judges them: against a loop that is spelt out."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.config import load_config
from atlas.environments.catalog import environment_spec
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.prepare import prepare
from atlas.rollout.actor import Actor
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.runs import read_scalars
from atlas.train import build_trainer, make_accelerator
from atlas.training import Trainer
from tests.conftest import MakeLibero
from tests.test_processes import QUICK

STEPS, DECAY, LARGEST_NORM = 4, 0.3, 0.05


@pytest.fixture
def settings(make_libero: MakeLibero, tmp_path: Path) -> list[str]:
    steps = [f"training.max_steps={STEPS}", "training.val_interval=2", "checkpoint.save_interval=2"]
    folders = [f"data.path={make_libero()}", f"output_dir={tmp_path}", "run_name=loop", "distributed.cpu=true"]
    return [*QUICK, *steps, *folders]


def trained_by_hand(trainer: Trainer, policy: ModularPolicy) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The averaged weights after the steps, and the gradients' norms: a batch a step, of all that the step sees."""
    given = trainer.config.training
    weights = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.ndim >= 2], "weight_decay": given.weight_decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=given.fused_optimizer,
    )
    averages = {name: p.detach().clone() for name, p in policy.named_parameters()}
    norms = []
    for step in range(STEPS):
        batch = trainer.train_data.__getitems__(trainer.schedule.order.step_samples(step))
        images = trainer.augment(batch.unit_images(), batch)
        optimizer.zero_grad()
        policy(replace(batch, images=images)).loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights, LARGEST_NORM)))
        for group in optimizer.param_groups:
            group["lr"] = given.learning_rate * (
                0.01 + 0.99 * (1 + torch.cos(torch.tensor(torch.pi * step / STEPS))) / 2
            )
        optimizer.step()
        kept = min(DECAY, (1 + step) / (10 + step))
        for name, parameter in policy.named_parameters():
            averages[name] = kept * averages[name] + (1 - kept) * parameter.detach()
    return averages, norms


def test_a_step_is_the_mean_over_its_valid_actions_clipped_and_averaged(settings: list[str]) -> None:
    """In two parts a step, whose chunks are padded differently; the norm is far above the largest that may be."""
    own = ["data.batch_size=4", "training.gradient_accumulation_steps=2", "training.warmup_steps=0"]
    own += [f"training.ema_decay={DECAY}", f"training.max_grad_norm={LARGEST_NORM}", "model.fusion.dropout=0"]
    prepared = prepare(load_config(None, [*settings, *own]))
    trainer = build_trainer(prepared, make_accelerator(prepared.config))
    by_hand, norms = trained_by_hand(trainer, copy.deepcopy(trainer.policy).train())

    trainer.train()
    trainer.tracker.finish(0)

    assert min(norms) > 4 * LARGEST_NORM
    logged = [norm for _, norm in read_scalars(trainer.run_dir)["train/grad_norm"]]
    assert logged == pytest.approx(norms, rel=1e-3)
    saved = load_policy(trainer.run_dir / "checkpoints" / "latest")
    for name, parameter in saved.named_parameters():
        torch.testing.assert_close(parameter, by_hand[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


class Recorder:
    """Instead of the simulator: solves all episodes the first time, and none after that."""

    env, spec = "cubes", environment_spec("cubes")

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []

    def run(
        self, actor: Actor, purpose: Any, episodes: int, name: str, step: int, videos: int = 0, evidence: Any = None
    ) -> EvaluationReport:
        self.asked.append((purpose, name, step))
        outcome = EpisodeOutcome("open the drawer", 1, len(self.asked) == 1, 1.0, 10)
        return EvaluationReport(self.env, name, (outcome,), purpose, step)

    def outcomes(self, *_: object) -> list[EpisodeOutcome]:
        raise AssertionError("there are no probes")

    def close(self) -> None:
        pass


def test_the_best_checkpoint_is_chosen_on_other_episodes_than_it_is_reported_on(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr("atlas.train._make_closed_loop", lambda *_: recorder)

    result = atlas.train(
        None, [*settings, "evaluation.episodes=1", "evaluation.interval=2", "evaluation.probe_episodes=0"]
    )

    checkpoints = result.run_dir / "checkpoints"
    assert ((checkpoints / "best").resolve().name, (checkpoints / "latest").resolve().name) == (
        "step_00000002",
        "step_00000004",
    )
    assert result.best_checkpoint == checkpoints / "step_00000002"
    final = ("final", str(result.best_checkpoint), 2)
    assert recorder.asked == [("selection", "step 2", 2), ("selection", "step 4", 4), final]
    found = json.loads((result.run_dir / "results.json").read_text())
    assert found["best_checkpoint"] == str(result.best_checkpoint)
    assert "step_00000002" in (result.run_dir / "report.html").read_text()
