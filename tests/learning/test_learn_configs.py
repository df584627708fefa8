"""The settings that ship for eight GPUs: those of the publications, valid, and what they say of memory is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from atlas.config import load_config
from atlas.config.reading import DEFAULT_CONFIG
from atlas.learning.on_policy.on_policy_run import check_shared
from atlas.learning.on_policy.ppo import PPO
from atlas.learning.policy_view import PolicyView
from atlas.learning.rank_group import RankGroup
from atlas.learning.run_config import settings_of
from atlas.policies.action_distribution import Noise
from tests.policies.pi_policies import build

FOLDER = DEFAULT_CONFIG.parent
SHIPPED = sorted(FOLDER.glob("learn_*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_settings_for_eight_gpus_are_valid_on_top_of_the_run_they_name(file: Path) -> None:
    comment = "".join(line.lstrip("# ") for line in file.read_text().splitlines(True) if line.startswith("#"))
    (base,) = set(re.findall(r"--config atlas/configs/(pi05\w+\.yaml)", comment))

    config = load_config(FOLDER / base, settings_of(file))

    assert config.distributed.gpus == 8 and config.distributed.strategy == "ddp" and config.model.type == "pi05"
    assert f"--config atlas/configs/{file.name}" in comment and "Computed, not measured" in comment
    eight = RankGroup(0, 8)
    check_shared("worlds", config.learning.ppo.worlds if "ppo" in settings_of(file)[0] else 8, eight)
    check_shared("groups", config.learning.grpo.groups, eight)


def test_the_settings_are_those_of_the_publications() -> None:
    pi_rl, simplevla = (load_config(None, settings_of(file)).learning for file in SHIPPED)

    ppo, grpo = pi_rl.ppo, simplevla.grpo
    assert (ppo.gamma, ppo.trace, ppo.epochs, ppo.clip_low, ppo.clip_high) == (0.99, 0.95, 4, 0.2, 0.2)
    assert (ppo.learning_rate, ppo.value_learning_rate, ppo.flow_noise) == (5e-6, 1e-4, 0.5)
    assert (grpo.groups, grpo.group_size, grpo.keep_low, grpo.keep_high) == (64, 8, 0.1, 0.9)
    assert (grpo.clip_low, grpo.clip_high, grpo.learning_rate, grpo.kl_weight) == (0.2, 0.28, 5e-6, 0.0)


def test_an_expert_beside_a_frozen_backbone_of_half_precision_learns_with_two_rates() -> None:
    policy = build("pi05", precision="bfloat16", train_expert_only=True).eval()
    view = PolicyView(policy, ("pick up the cube",), None, 2, Noise(0.05, 0.8, 0.5))
    settings = load_config(None, settings_of(SHIPPED[0])).learning.ppo

    ppo = PPO(settings, view, seed=0)

    own, values = ppo.optimizer.param_groups
    trained = {id(p) for p in policy.parameters() if p.requires_grad}
    assert {id(p) for p in own["params"]} == trained and len(trained) < len(list(policy.parameters()))
    assert {id(p) for p in values["params"]} == {id(p) for p in ppo.value.parameters()}
    size = policy.processor.image_size
    seen = {
        "proprio": torch.zeros(3, policy.processor.proprio_dim),
        "task": torch.zeros(3, 1, dtype=torch.uint8),
        "images": torch.zeros(3, policy.processor.views, 3, size, size, dtype=torch.uint8),
    }
    path, _ = view.distribution(seen).sample(torch.Generator().manual_seed(0))
    view.distribution(seen).log_prob(path.detach()).sum().backward()
    assert all(p.grad is None for p in policy.parameters() if not p.requires_grad)
    assert sum(float(p.grad.abs().sum()) for p in own["params"] if p.grad is not None) > 0
    assert ppo.state_values(seen).shape == (3,)
