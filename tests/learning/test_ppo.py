"""PPO: advantages that add up, a clip that holds, and a policy that finds what is rewarded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas.config import Config, PpoConfig
from atlas.environments.catalog import environment_spec, make_environment
from atlas.learning.explorer import Explorer
from atlas.learning.on_policy.clipped_learning import clipped_loss
from atlas.learning.on_policy.ppo import PPO, Played, RunningScale, advantages, learn_ppo
from atlas.learning.policy_view import PolicyView
from atlas.learning.run_config import config_from_nothing
from atlas.learning.run_parts import start_policy
from atlas.runs import read_scalars
from tests.learning.conftest import SILENT

pytest.importorskip("gymnasium", reason="Pendulum is gymnasium's: pip install 'atlas-vla[gym]'")
PENDULUM = "gym:Pendulum-v1?horizon=50"


def small(out: Path, *overrides: str) -> Config:
    tiny = ["model.fusion.dim=32", "learning.held_out_episodes=2", "learning.ppo.eval_episodes=1", *SILENT]
    return config_from_nothing("ppo", PENDULUM, [*tiny, f"output_dir={out}", *overrides])


def view_of(config: Config) -> PolicyView:
    return PolicyView(start_policy(config, PENDULUM, None), environment_spec(PENDULUM).instructions)


def test_advantages_are_the_sums_of_what_was_better_than_expected() -> None:
    gamma, trace = 0.9, 0.8
    rewards, values = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.5, 0.25, 0.0, 1.0])
    then, over = torch.tensor([0.25, 0.0, 1.0, 2.0]), torch.tensor([False, True, False, True])
    nothing = {"proprio": torch.zeros(4, 1)}

    found = advantages(Played(nothing, torch.zeros(4, 1, 1), torch.zeros(4), rewards, values, then, over), gamma, trace)

    errors = [1 + 0.9 * 0.25 - 0.5, 2 - 0.25, 3 + 0.9 * 1.0 - 0.0, 4 + 0.9 * 2.0 - 1.0]
    wanted = [errors[0] + 0.72 * errors[1], errors[1], errors[2] + 0.72 * errors[3], errors[3]]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_nothing_is_gained_beyond_the_clip() -> None:
    before, worth = torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0])
    log_probs = torch.log(torch.tensor([1.5, 0.9, 0.5, 1.1])).requires_grad_()

    loss, divergence, clipped = clipped_loss(log_probs, before, worth, 0.2, 0.28)
    loss.backward()

    assert log_probs.grad is not None
    assert (log_probs.grad == 0).tolist() == [True, False, True, False]
    assert loss.item() == pytest.approx(-(1.28 + 0.9 - 0.8 - 1.1) / 4) and clipped.item() == 0.5
    assert float(divergence) > 0


def test_nothing_is_trained_in_bfloat16(tmp_path: Path) -> None:
    config = small(tmp_path)
    view = view_of(config)
    view.policy.bfloat16()

    with pytest.raises(AssertionError, match="is trained in "):
        PPO(config.learning.ppo, view, seed=0)


def test_rewards_are_scaled_by_the_deviation_of_returns() -> None:
    scale, draw = RunningScale(0.0), np.random.default_rng(0)
    scaled = [scale(10 * draw.normal(), over=False) for _ in range(2000)]
    assert np.std(scaled[500:]) == pytest.approx(1, rel=0.1)


def test_it_finds_the_action_that_is_rewarded(tmp_path: Path) -> None:
    config = small(tmp_path)
    view, draw, random = view_of(config), np.random.default_rng(0), torch.Generator().manual_seed(0)
    ppo = PPO(PpoConfig(learning_rate=3e-3, epochs=4, width=16, anneal=False), view, seed=0)
    for _ in range(25):
        states = torch.from_numpy(draw.uniform(-0.8, 0.8, (256, 3))).float()
        seen = {"proprio": states, "task": torch.zeros(256, 1, dtype=torch.uint8)}
        with torch.no_grad():
            actions, log_probs = view.distribution(seen).sample(random)
            values = ppo.state_values(seen)
        rewards, over = -(actions[:, 0, 0] - states[:, 0]).abs(), torch.ones(256, dtype=torch.bool)
        shown = ppo.learn(Played(seen, actions, log_probs, rewards, values, torch.zeros(256), over), 0.0, draw)

    asked = {"proprio": torch.tensor([[-0.6, 0, 0], [0.6, 0, 0]]), "task": torch.zeros(2, 1)}
    found = view.distribution(asked).most_likely.flatten()
    assert found[0] < -0.35 and found[1] > 0.35
    assert 0 < shown["ppo/kl"] < 0.5 and ppo.skipped == 0


def test_a_run_goes_on_exactly_in_the_middle_of_episodes(tmp_path: Path, break_at: Callable[[int], None]) -> None:
    settings = ["learning.ppo.steps=240", "learning.ppo.worlds=2", "learning.ppo.decisions=30", "learning.ppo.epochs=2"]
    settings += ["learning.ppo.save_interval=60", "learning.ppo.eval_interval=120", "learning.ppo.anneal=false"]
    settings += ["learning.ppo.episode_steps=25", "learning.ppo.start_kl_limit=1e6"]
    config = small(tmp_path, *settings)
    break_at(150)
    with pytest.raises(RuntimeError, match="lights"):
        learn_ppo(config, PENDULUM)
    assert (config.run_dir / "checkpoints" / "step_00000120").is_dir()

    result = learn_ppo(config, PENDULUM)
    whole = small(tmp_path, *settings, "run_name=whole")
    learn_ppo(whole, PENDULUM)

    assert result.steps == 240 and result.updates == 4 * 2 and result.episodes == 2 * (240 // 2 // 25)
    kept = [each.run_dir / "checkpoints" / "step_00000240" for each in (config, whole)]
    for file in ("trainer/learner.safetensors", "trainer/worlds.safetensors", "policy/model.safetensors"):
        assert (kept[0] / file).read_bytes() == (kept[1] / file).read_bytes(), file
    learner = read_scalars(config.run_dir / "learner")
    assert learner["learner/update_steps"][-1] == (8, 8) and "ppo/explained_variance" in learner
    assert "ppo/start_kl" in learner and [step for step, _ in learner["eval/mean_reward"]] == [4, 8]
    actor = read_scalars(config.run_dir / "actor")
    assert {value for _, value in actor["actor/episode_length"]} == {25}


def test_a_world_that_does_not_repeat_itself_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with closing(make_environment(PENDULUM)) as env:
        explorer = Explorer(env, seed=0)
        explorer.step(np.full((7, 1), 0.5, np.float32))
        there, seen = explorer.progress, explorer.observation.proprio

        explorer.begin()
        explorer.resume(there)
        np.testing.assert_array_equal(explorer.observation.proprio, seen)
        assert not caplog.records
        explorer.resume(replace(there, proprio=there.proprio + 1))

    assert "does not repeat what was done in it" in caplog.text
