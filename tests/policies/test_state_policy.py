"""A policy that does not look: trained, evaluated, saved and described like any other, from proprio alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import atlas
from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.action_distribution import ActionDistribution, FlowActions, GaussianActions, Noise, NoisyActions
from atlas.policies.base import ActsAtRandom, load_policy
from atlas.policies.modular.fusion import MLPFusion
from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.modular.parts import MLPFusionConfig
from atlas.policies.summary import summarize
from atlas.rollout.evaluation import evaluate_checkpoint
from atlas.types import Observation

STATE = [
    "model.vision.name=none",
    "model.fusion={name: mlp, dim: 32}",
    "model.language.dim=16",
    "model.head.name=gaussian",
    "data.batch_size=8",
    "data.num_workers=0",
]


def test_a_policy_from_state_alone_is_a_policy_like_others(cubes_dataset: Path, tmp_path: Path) -> None:
    few = ["training.max_steps=3", "training.warmup_steps=1", "evaluation.episodes=0", "evaluation.final_episodes=0"]
    few += [f"data.path={cubes_dataset}", f"output_dir={tmp_path}"]

    run = atlas.train(None, [*STATE, *few, "run_name=state"]).run_dir

    policy = load_policy(run)
    assert policy.processor.cameras == () and "images" not in (run / "checkpoints/best/policy/README.md").read_text()
    blind = Observation({}, np.zeros(8, np.float32), "pick up the red cube")
    batch = policy.processor.batch([blind])
    assert batch.images is None and policy.sample(batch).shape == (1, 8, 7)
    assert isinstance(policy, ActsAtRandom)
    assert policy.action_distribution(batch).sample()[0].shape == (1, 8, 7)
    assert len(evaluate_checkpoint(run, "cubes", episodes=1, workers=1).outcomes) == 1
    assert summarize(load_config(None, STATE))["parts"][0]["parameters"] == 0


def test_cameras_are_not_named_for_a_policy_that_does_not_look() -> None:
    with pytest.raises(InputError, match=r"data.cameras names cameras, but model.vision.name is none"):
        load_config(None, ["model.vision.name=none", "data.cameras=[agentview]"])


@pytest.mark.parametrize("squashed", [False, True])
def test_the_density_is_that_of_what_is_drawn(squashed: bool) -> None:
    """Against numbers: the share of draws in a small interval is its width times the density in it."""
    generator = torch.Generator().manual_seed(0)
    shape = (200_000, 1, 1)
    distribution = GaussianActions(torch.full(shape, 0.3), torch.full(shape, -0.5), squashed)

    actions, log_prob = distribution.sample(generator)

    torch.testing.assert_close(distribution.log_prob(actions), log_prob, atol=1e-3, rtol=1e-3)
    near = (actions[:, 0, 0] - 0.5).abs() < 0.02
    assert near.float().mean() / 0.04 == pytest.approx(float(log_prob[near].exp().mean()), rel=0.05)
    assert not squashed or actions.abs().max() < 1


def gaussian(rows: torch.Tensor) -> ActionDistribution:
    return GaussianActions(rows, rows - 1, squashed=True)


def noisy(rows: torch.Tensor) -> ActionDistribution:
    at = torch.tensor([0, 1]), torch.tensor([2])
    return NoisyActions(rows[..., :2], rows[..., 2:], *at, Noise(0.1, 0.5))


def flowing(rows: torch.Tensor) -> ActionDistribution:
    shape = len(rows), rows.shape[1], rows.shape[2]
    return FlowActions(lambda x, _: x - rows, lambda x: x, shape, rows.device, 3, steps=4, noise=0.5, counted=2)


@pytest.mark.parametrize("distribution", [gaussian, noisy, flowing])
def test_a_row_with_its_own_generator_draws_what_it_draws_alone(
    distribution: Callable[[torch.Tensor], ActionDistribution],
) -> None:
    """So a world plays the same beside any others."""
    rows, seeds = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(7)), (4, 5, 6)

    together = distribution(rows).sample([torch.Generator().manual_seed(seed) for seed in seeds])
    alone = [
        distribution(row[None]).sample(torch.Generator().manual_seed(seed))
        for row, seed in zip(rows, seeds, strict=True)
    ]

    for drawn, each in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(drawn, torch.cat(each), rtol=1e-6, atol=1e-6)
    assert not torch.equal(together[0][0], together[0][1])


def test_no_vision_tokens_are_zeros_and_leave_their_weights_alone() -> None:
    fusion = MLPFusion(MLPFusionConfig(dim=8), 2, 5, 3, 4)
    words, proprio = LanguageTokens(torch.randn(6, 1, 3), torch.zeros(6, 1, dtype=torch.bool)), torch.randn(6, 4)

    fused = fusion(torch.zeros(6, 0, 5), words, proprio)
    fused.sum().backward()

    torch.testing.assert_close(fused, fusion(torch.zeros(6, 1, 5), words, proprio))
    gradient = next(fusion.parameters()).grad
    assert gradient is not None and (gradient[:, :5] == 0).all() and (gradient[:, 5:] != 0).any()
