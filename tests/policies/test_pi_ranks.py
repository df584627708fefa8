"""Two processes train pi0 and pi0.5 as one does, replicated or spread, with activations kept or computed again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from atlas.config import load_config
from atlas.training.parallel.block_setup import set_up_blocks
from tests.policies.pi_policies import batch_of, build
from tests.training.joint import check_trained_alike, train_briefly
from tests.training.ranks import run_ranks

WAYS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "pi0 whole": ("pi0", {}, []),
    "pi05 whole, spread": ("pi05", {}, ["distributed.strategy=fsdp", "training.activation_checkpointing=true"]),
    "pi0 adapters": ("pi0", {"lora": {"rank": 2}}, ["training.activation_checkpointing=true"]),
    "pi0 adapters, spread": ("pi0", {"lora": {"rank": 2}}, ["distributed.strategy=fsdp"]),
    "pi05 expert, spread": ("pi05", {"train_expert_only": True}, ["distributed.strategy=fsdp"]),
}


def _train(way: str) -> dict[str, Any]:
    kind, settings, overrides = WAYS[way]
    torch.manual_seed(0)
    policy = build(kind, **settings)
    samples = replace(batch_of(policy, kind), key=torch.arange(3))
    return train_briefly(policy, samples, load_config({}, ["training.ema_decay=0", *overrides]), clip=1.0)


def _all() -> dict[str, Any]:
    return {way: _train(way) for way in WAYS}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(2, tmp_path_factory.mktemp("ranks"), _all)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_does(way: str, pair: list[Any]) -> None:
    alone = _train(way)

    for rank in pair:
        check_trained_alike(rank[way], alone, weights=2e-3)


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
