"""Policies that grow chunks from noise: a random step with a density, and learning by reward from it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas.learning.on_policy.grpo import learn_grpo
from atlas.learning.policy_view import PolicyView
from atlas.learning.run_config import config_from_nothing
from atlas.policies.action_distribution import FlowActions, Noise
from atlas.policies.base import ActsByFlow, Policy, ShowsFeatures, load_policy
from atlas.types import Observation
from tests.learning.conftest import SILENT

PUBLISHED = Path(__file__).parents[1] / "fixtures"
MEAN, SPREAD = 0.4, 0.5  # of the actions of a flow that is known exactly


def exact(noise: float, steps: int, count: int = 40_000) -> FlowActions:
    def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = time[:, None, None]
        spread = (1 - t) ** 2 * SPREAD**2 + t**2
        off = x - (1 - t) * MEAN
        return t * off / spread - (MEAN + (1 - t) * SPREAD**2 * off / spread)  # E[noise - action | x]

    return FlowActions(velocity, lambda x: x, (count, 1, 1), torch.device("cpu"), 1, steps, noise, 1)


def test_a_random_step_leaves_the_distribution_as_it_is() -> None:
    """Of the exact flow to a Gaussian: after the step it is that of its time, and at the end that of the actions."""
    steps = 50
    path, _ = exact(0.7, steps).sample(torch.Generator().manual_seed(0))
    before, after, final, step = (path[:, 0, column] for column in range(4))

    assert float((after - before).std()) > 0.05 and step.unique().numel() == steps
    for low, high in ((10, 25), (25, 40)):
        rows = (step >= low) & (step < high)
        time = 1 - (step[rows] + 1) / steps
        scale = ((1 - time) ** 2 * SPREAD**2 + time**2).sqrt()
        standard = (after[rows] - (1 - time) * MEAN) / scale
        assert abs(float(standard.mean())) < 0.04 and abs(float(standard.std()) - 1) < 0.04
    assert abs(float(final.mean()) - MEAN) < 0.02 and abs(float(final.std()) - SPREAD) < 0.03


def test_the_density_is_that_of_what_was_drawn() -> None:
    flow = exact(0.5, 4, 2000)
    path, log_prob = flow.sample(torch.Generator().manual_seed(1))

    torch.testing.assert_close(flow.log_prob(path), log_prob, atol=1e-4, rtol=1e-4)
    assert float((-log_prob).mean()) == pytest.approx(float(flow.entropy[0]), abs=0.05)
    assert (
        flow.log_prob(flow.most_likely) >= log_prob[flow.most_likely[:, 0, -1] == path[:, 0, -1]].max() - 1e-3
    ).all()
    # Flow-GRPO's own form of it, at a step in the middle
    x, t, delta = path[:, 0, 0], 1 - path[:, 0, 3] / 4, 0.25
    v = flow.velocity(path[:, :, :1], t)[:, 0, 0]
    sigma = 0.5 * (t / (1 - t.clamp(max=0.75))).sqrt()
    middle = x - (v + sigma**2 / (2 * t) * (x + (1 - t) * v)) * delta
    wanted = torch.distributions.Normal(middle, sigma * math.sqrt(delta)).log_prob(path[:, 0, 1])
    torch.testing.assert_close(log_prob, wanted, atol=1e-4, rtol=1e-4)


def seen_by(policy: Policy) -> Observation:
    draw = np.random.default_rng(0)
    images = {name: draw.integers(0, 255, (32, 32, 3), np.uint8) for name in policy.processor.cameras}
    proprio = draw.normal(size=policy.processor.proprio_dim).astype(np.float32)
    return Observation(images, proprio, "pick up the cube")


@pytest.mark.parametrize("kind", ["pi0", "pi05", "smolvla"])
def test_published_policies_learn_from_a_random_step(kind: str) -> None:
    policy = load_policy(PUBLISHED / kind)
    assert isinstance(policy, ActsByFlow) and policy.acts_by_flow and isinstance(policy, ShowsFeatures)
    view = PolicyView(policy, ("pick up the cube",), None, 2, Noise(0.05, 0.8, 0.5))
    row = view.look(seen_by(policy))
    seen = {name: torch.from_numpy(values)[None].repeat(2, *[1] * values.ndim) for name, values in row.items()}

    with torch.no_grad():
        path, log_prob = view.distribution(seen).sample(torch.Generator().manual_seed(0))
    found = view.distribution(seen).log_prob(path)
    (found.sum()).backward()

    torch.testing.assert_close(found, log_prob, atol=2e-3, rtol=1e-3)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in policy.parameters())
    assert view.state(seen).shape == (2, view.state_dim)
    actions = view.in_units(path[0].flatten().numpy())
    units = policy.action_scaler.denormalize(  # type: ignore[operator, union-attr]
        path[:1, :2, -1 - actions.shape[1] : -1], torch.zeros(1, dtype=torch.int64)
    )
    np.testing.assert_allclose(actions, units[0].numpy(), rtol=1e-5, atol=1e-5)


def test_grpo_teaches_a_flow_what_is_rewarded(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium", reason="the small world is gymnasium's: pip install 'atlas-vla[gym]'")
    from tests.learning.bandit import NAME

    flow = "model.head={name: flow_matching, dim: 16, layers: 1, heads: 2, steps: 4, solver: euler}"
    settings = [
        "steps=1024",
        "learning_rate=1e-2",
        "epochs=4",
        "batch_size=64",
        "eval_interval=10000",
        "eval_episodes=5",
    ]
    settings = [flow, *SILENT, "model.fusion.dim=16", "learning.held_out_episodes=40"] + [
        f"learning.grpo.{each}" for each in settings
    ]
    config = config_from_nothing("grpo", NAME, [*settings, f"output_dir={tmp_path}"])

    result = learn_grpo(config, NAME)

    assert result.after.success_rate > result.before.success_rate + 0.15
