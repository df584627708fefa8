"""GRPO: groups that say something, noise with a density, a policy that learns, and goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium", reason="the small world is gymnasium's: pip install 'atlas-vla[gym]'")

from atlas.config import Config
from atlas.learning.on_policy.clipped_learning import divergence_from
from atlas.learning.on_policy.grpo import group_advantages, learn_grpo
from atlas.learning.on_policy.ppo import learn_ppo
from atlas.learning.run_config import config_from_nothing, config_of_run
from atlas.policies.action_distribution import Noise, NoisyActions
from atlas.policies.base import load_policy
from atlas.rollout.verdicts.evidence import policy_hash, trained_on
from atlas.runs import read_scalars
from atlas.system.documents import read_json
from tests.learning.bandit import NAME
from tests.learning.conftest import SILENT

TINY = ["model.fusion.dim=16", "learning.held_out_episodes=20", "learning.grpo.eval_episodes=5", *SILENT]


def small(out: Path, *overrides: str) -> Config:
    return config_from_nothing("grpo", NAME, [*TINY, f"output_dir={out}", *overrides])


def test_an_episode_is_worth_what_it_reached_beyond_its_group() -> None:
    found = group_advantages(np.array([1.0, 0, 0, 0]), True, 0.1, 0.9)
    assert found is not None and found.tolist() == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])
    assert group_advantages(np.ones(4), True, 0.1, 0.9) is None
    assert group_advantages(np.array([1.0, 1, 1, 0]), True, 0.1, 0.7) is None
    returns = group_advantages(np.array([-3.0, -1.0]), False, 0.1, 0.9)
    assert returns is not None and returns.tolist() == [-1, 1]


def test_noise_that_actions_share_has_the_density_of_what_is_drawn() -> None:
    """Beside torch's Gaussian with the whole covariance, and of the first actions alone."""
    pose, gripper = torch.randn(3, 4, 2), torch.randn(3, 4, 1)
    noise = Noise(0.3, 0.6)
    actions = NoisyActions(pose, gripper, torch.tensor([0, 2]), torch.tensor([1]), noise)
    drawn, log_prob = actions.sample(torch.Generator().manual_seed(0))

    for count in (4, 2):
        covariance = 0.09 * (0.4 * torch.eye(count) + 0.6)
        wanted = torch.distributions.MultivariateNormal(pose[:, :count].mT, covariance)
        poses = wanted.log_prob(drawn[:, :count, [0, 2]].mT).sum(1)
        grippers = torch.distributions.Bernoulli(logits=gripper[:, :count]).log_prob(
            (drawn[:, :count, [1]] > 0).float()
        )
        found = actions.first(count).log_prob(drawn[:, :count])
        torch.testing.assert_close(found, poses + grippers.sum((1, 2)))
        entropy = wanted.entropy().sum(1) + torch.distributions.Bernoulli(logits=gripper[:, :count]).entropy().sum(
            (1, 2)
        )
        torch.testing.assert_close(actions.first(count).entropy, entropy)
    torch.testing.assert_close(actions.log_prob(drawn), log_prob)
    many = NoisyActions(
        torch.zeros(4000, 4, 1), torch.zeros(4000, 4, 0), torch.tensor([0]), torch.tensor([]).long(), noise
    )
    sampled = many.sample(torch.Generator().manual_seed(1))[0][..., 0]
    torch.testing.assert_close(torch.cov(sampled.T), 0.09 * (0.4 * torch.eye(4) + 0.6), atol=0.01, rtol=0)


def test_the_distance_from_the_start_is_never_negative() -> None:
    now = torch.randn(2000)
    found = divergence_from(now - 0.5 + 0.1 * torch.randn(2000), now)
    assert (found >= 0).all() and float(divergence_from(now, now).max()) == 0


def test_it_learns_and_goes_on_exactly(
    tmp_path: Path, break_at: Callable[[int], None], atlas: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["learning.grpo.steps=512", "learning.grpo.learning_rate=2e-2", "learning.grpo.epochs=4"]
    settings += ["learning.grpo.eval_interval=10000", "learning.grpo.save_interval=64", "learning.grpo.batch_size=32"]
    break_at(200)
    with pytest.raises(RuntimeError, match="lights"):
        learn_grpo(small(tmp_path, *settings, "run_name=broken"), NAME)
    result = learn_grpo(small(tmp_path, *settings, "run_name=broken"), NAME)
    capsys.readouterr()
    assert (
        atlas("learn", "grpo", "--env", NAME, "--json", *TINY, *settings, f"output_dir={tmp_path}", "run_name=w") == 0
    )

    found = json.loads(capsys.readouterr().out)
    assert found["env_steps"] == 512 and found["success_rate"]["after"] > found["success_rate"]["before"] + 0.2
    assert result.after.success_rate == found["success_rate"]["after"] and found["ended_early"] is None
    kept = [tmp_path / name / "checkpoints" / "step_00000512" for name in ("broken", "w")]
    for file in ("trainer/learner.safetensors", "policy/model.safetensors"):
        assert (kept[0] / file).read_bytes() == (kept[1] / file).read_bytes(), file
    learner = read_scalars(tmp_path / "w" / "learner")
    assert {"grpo/policy_loss", "grpo/kl", "grpo/groups_kept", "grpo/mean_reached"} <= learner.keys()
    assert learner["grpo/kl"][-1][0] == learner["learner/update_steps"][-1][1] == found["updates"]


def test_a_policy_that_runs_away_ends_the_run_and_leaves_the_best(tmp_path: Path) -> None:
    limits = ["learning.grpo.start_kl_limit=0.05", "learning.grpo.learning_rate=0.1", "learning.grpo.kl_limit=0.5"]

    result = learn_grpo(small(tmp_path, *limits, "learning.grpo.eval_interval=64", "learning.grpo.epochs=8"), NAME)

    assert result.steps < 2000 and result.ended is not None
    assert "learning.grpo.start_kl_limit (0.05)" in result.ended and result.ended in result.sentence()
    assert (tmp_path / "Bandit-v0-grpo" / "best" / "policy" / "model.safetensors").exists()
    again = learn_grpo(small(tmp_path, *limits, "learning.grpo.eval_interval=64", "learning.grpo.epochs=8"), NAME)
    assert again.ended == result.ended and again.steps == result.steps


def test_a_policy_that_looks_learns_too(first_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default policy, of images and with a regression head, in short episodes of the real simulator."""
    monkeypatch.setattr("atlas.environments.cubes.HORIZON", 4)
    settings = [
        "steps=16",
        "eval_episodes=1",
        "epochs=1",
        "eval_interval=99",
        "batch_size=4",
        "worlds=1",
        "decisions=4",
    ]
    settings = [
        *[f"learning.ppo.{each}" for each in settings],
        "learning.held_out_episodes=1",
        "learning.control=false",
    ]
    config = config_of_run(str(first_run), "ppo", [*settings, f"output_dir={tmp_path}"])

    result = learn_ppo(config, "cubes", str(first_run))

    assert result.steps == 16 and result.updates == 1 and result.before.env == "cubes"
    shown = read_scalars(config.run_dir / "learner")
    assert shown["ppo/kl"][0][1] == pytest.approx(0, abs=1e-6)  # the actions are as likely as they were
    assert load_policy(config.run_dir / "checkpoints" / "step_00000016").processor.cameras
    found = read_json(config.run_dir / "results.json")
    assert found["probes"].keys() == {"blind", "instruction_shuffle"} == result.twins.keys()
    assert "0 of 1 told another task, 0 of 1 with black images" in result.sentence()
    evidence, base = found["evidence"], first_run / "checkpoints" / "best" / "policy"
    assert evidence["policy_sha256"] == policy_hash(config.run_dir / "best" / "policy")
    assert evidence["dataset_fingerprint"] == trained_on(base.resolve()) is not None
    page = (config.run_dir / "report.html").read_text()
    assert f"atlas learn ppo --env cubes --checkpoint {first_run}" in page and "with black images" in page
    assert "learning.ppo.worlds=1" in page and "learning.sac" not in page.split("atlas learn ppo")[1].split("</pre>")[0]
