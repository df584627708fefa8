"""A policy that does not look: trained, evaluated, saved and described like any other, from proprio alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import atlas
from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.action_distribution import GaussianActions
from atlas.policies.base import ActsAtRandom, load_policy
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
