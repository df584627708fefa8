"""Two processes train SmolVLA as one does, replicated or spread, the expert alone or all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from atlas.config import load_config
from atlas.policies.base import load_policy
from atlas.policies.smolvla.smolvla_section import SmolVLAConfig
from atlas.training.parallel.block_setup import set_up_blocks
from atlas.training.parallel.strategy import make_strategy
from tests.policies.golden import FIXTURES, Golden
from tests.training.joint import furthest, rows, whole
from tests.training.ranks import make_accelerator, run_ranks

SMOLVLA = FIXTURES / "smolvla"
WHOLE = {"train_expert_only": False, "freeze_vision_encoder": False}
WAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "expert": ({}, []),
    "expert, spread": ({}, ["distributed.strategy=fsdp"]),
    "whole, spread": (WHOLE, ["distributed.strategy=fsdp", "training.activation_checkpointing=true"]),
}
STEPS, SAMPLES = 2, 2


def _train(way: str) -> dict[str, Any]:
    """As the Trainer does it, on as many processes as there are; no step's loss depends on their number."""
    settings, overrides = WAYS[way]
    config = load_config({}, ["training.ema_decay=0", "training.learning_rate=1e-4", *overrides])
    policy = SmolVLAConfig(pretrained=str(SMOLVLA), sampling_steps=2, **settings).build(load_policy(SMOLVLA).processor)
    batch = Golden("smolvla").batch(policy.processor)
    # Nothing is padded: each sample counts the same, on any number of processes.
    assert batch.action_is_pad is not None
    samples = replace(batch, key=torch.arange(3), action_is_pad=torch.zeros_like(batch.action_is_pad))
    accelerator = make_accelerator(config)
    set_up_blocks(policy, config.training.activation_checkpointing, compiled=False)
    strategy = make_strategy(policy, config, accelerator)
    strategy.model.train()
    count = SAMPLES // accelerator.num_processes
    mine = rows(samples, accelerator.process_index * count, (accelerator.process_index + 1) * count)
    losses = []
    for _ in range(STEPS):
        loss = strategy.model(mine).loss
        accelerator.backward(loss)
        strategy.clip(10.0)
        strategy.optimizer.step()
        strategy.optimizer.zero_grad(set_to_none=True)
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    trained = {name: whole(p) for name, p in strategy.policy.named_parameters() if p.requires_grad}
    with strategy.judged() as judged, torch.no_grad():
        sampled = judged.sample(rows(samples, 0, 1))
    return {"losses": losses, "trained": trained, "sampled": sampled}


def _all() -> dict[str, Any]:
    return {way: _train(way) for way in WAYS}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(2, tmp_path_factory.mktemp("ranks"), _all)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_does(way: str, pair: list[Any]) -> None:
    alone = _train(way)

    for found in (rank[way] for rank in pair):
        assert found["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert furthest(found["trained"], alone["trained"]) < 5e-4  # AdamW makes whole steps of small gradients
        assert found["sampled"] == pytest.approx(alone["sampled"], abs=5e-2)
