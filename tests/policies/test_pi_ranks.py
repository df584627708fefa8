"""Two processes train pi0 and pi0.5 as one does, replicated or spread, with activations kept or computed again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from atlas.config import load_config
from atlas.training.parallel.block_setup import set_up_blocks
from atlas.training.parallel.strategy import make_strategy
from atlas.types import Batch
from tests.policies.pi_policies import batch_of, build
from tests.training.joint import furthest, rows, whole
from tests.training.ranks import make_accelerator, run_ranks

WAYS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "pi0 whole": ("pi0", {}, []),
    "pi05 whole, spread": ("pi05", {}, ["distributed.strategy=fsdp", "training.activation_checkpointing=true"]),
    "pi0 adapters": ("pi0", {"lora": {"rank": 2}}, ["training.activation_checkpointing=true"]),
    "pi0 adapters, spread": ("pi0", {"lora": {"rank": 2}}, ["distributed.strategy=fsdp"]),
    "pi05 expert, spread": ("pi05", {"train_expert_only": True}, ["distributed.strategy=fsdp"]),
}
STEPS, SAMPLES = 2, 2


def _train(way: str) -> dict[str, Any]:
    """As the Trainer does it, on as many processes as there are; no step's loss depends on their number."""
    kind, settings, overrides = WAYS[way]
    config = load_config({}, ["training.ema_decay=0", *overrides])
    torch.manual_seed(0)
    policy = build(kind, **settings)
    samples = replace(batch_of(policy, kind), key=torch.arange(3))
    accelerator = make_accelerator(config)
    set_up_blocks(policy, config.training.activation_checkpointing, compiled=False)
    strategy = make_strategy(policy, config, accelerator)
    strategy.model.train()
    losses = []
    for _ in range(STEPS):
        loss = strategy.model(_share(samples, accelerator.process_index, accelerator.num_processes)).loss
        accelerator.backward(loss)
        strategy.clip(1.0)
        strategy.optimizer.step()
        strategy.optimizer.zero_grad(set_to_none=True)
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    trained = {name: whole(p) for name, p in strategy.policy.named_parameters() if p.requires_grad}
    with strategy.judged() as judged, torch.no_grad():
        sampled = judged.sample(rows(samples, 0, 1))
    return {"losses": losses, "trained": trained, "sampled": sampled}


def _share(samples: Batch, rank: int, ranks: int) -> Batch:
    count = SAMPLES // ranks
    return rows(samples, rank * count, (rank + 1) * count)


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
        assert furthest(found["trained"], alone["trained"]) < 2e-3  # AdamW makes whole steps of small gradients
        assert found["sampled"] == pytest.approx(alone["sampled"], abs=5e-2)


def test_activations_that_are_computed_again_change_nothing() -> None:
    batch = replace(batch_of(build("pi0"), "pi0"), key=torch.arange(3))
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        policy = build("pi0", lora={"rank": 2}).train()
        set_up_blocks(policy, recompute, compiled=False)
        policy(batch).loss.backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})

    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
