"""Two processes train SmolVLA as one does, replicated or spread, the expert alone or all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from atlas.config import load_config
from atlas.policies.base import load_policy
from atlas.policies.smolvla.smolvla_section import SmolVLAConfig
from tests.policies.golden import FIXTURES, Golden
from tests.training.joint import check_trained_alike, train_briefly
from tests.training.ranks import run_ranks

SMOLVLA = FIXTURES / "smolvla"
WHOLE = {"train_expert_only": False, "freeze_vision_encoder": False}
WAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "expert": ({}, []),
    "expert, spread": ({}, ["distributed.strategy=fsdp"]),
    "whole, spread": (WHOLE, ["distributed.strategy=fsdp", "training.activation_checkpointing=true"]),
}


def _train(way: str) -> dict[str, Any]:
    settings, overrides = WAYS[way]
    config = load_config({}, ["training.ema_decay=0", "training.learning_rate=1e-4", *overrides])
    policy = SmolVLAConfig(pretrained=str(SMOLVLA), sampling_steps=2, **settings).build(load_policy(SMOLVLA).processor)
    batch = Golden("smolvla").batch(policy.processor)
    assert batch.action_is_pad is not None
    samples = replace(batch, key=torch.arange(3), action_is_pad=torch.zeros_like(batch.action_is_pad))
    return train_briefly(policy, samples, config, clip=10.0)


def _all() -> dict[str, Any]:
    return {way: _train(way) for way in WAYS}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(2, tmp_path_factory.mktemp("ranks"), _all)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_does(way: str, pair: list[Any]) -> None:
    alone = _train(way)

    for rank in pair:
        check_trained_alike(rank[way], alone, weights=5e-4)
