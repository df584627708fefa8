"""SAC: it finds the best action, skips what is not finite, and goes on exactly where it was stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch

from atlas.checkpoints import saved_steps
from atlas.config import Config, SacConfig
from atlas.environments.catalog import environment_spec
from atlas.errors import InputError
from atlas.learning.experience_replay import DecisionBatch, Replay
from atlas.learning.policy_view import PolicyView
from atlas.learning.run_config import config_from_nothing
from atlas.learning.run_parts import start_policy
from atlas.learning.sac import Critics, SoftActorCritic
from atlas.learning.sac_run import learn_here
from atlas.policies.base import load_policy
from atlas.rollout.verdicts.reproduction import reproduce
from atlas.runs import read_scalars
from atlas.training.guards.signals import Interrupted
from tests.learning.conftest import SILENT

pytest.importorskip("gymnasium", reason="Pendulum is gymnasium's: pip install 'atlas-vla[gym]'")
PENDULUM = "gym:Pendulum-v1?horizon=50"
TINY = ["model.fusion.dim=16", "learning.sac.width=16", "learning.sac.batch_size=16", "learning.sac.eval_episodes=1"]
TINY += ["learning.held_out_episodes=2", "training.log_interval=20", *SILENT]


def small(out: Path, *overrides: str) -> Config:
    return config_from_nothing("sac", PENDULUM, [*TINY, f"output_dir={out}", *overrides])


def view_of(config: Config) -> PolicyView:
    return PolicyView(start_policy(config, PENDULUM, None), environment_spec(PENDULUM).instructions)


def test_it_finds_the_action_that_is_rewarded(tmp_path: Path) -> None:
    """A task of one decision: the reward is the less, the farther the action is from the state's first number."""
    view, draw = view_of(small(tmp_path)), np.random.default_rng(0)
    sac = SoftActorCritic(
        SacConfig(width=32, learning_rate=3e-3, critic_learning_rate=3e-3, critics=4, temperature=0.05),
        view,
        seed=0,
        device=torch.device("cpu"),
    )
    replay = Replay(2000, view.columns, view.action_dim)
    for _ in range(1000):
        state = np.array([draw.uniform(-0.8, 0.8), 0, 0], np.float32)
        row, action = {"proprio": state, "task": np.zeros(1, np.uint8)}, draw.uniform(-1, 1, (1, 1)).astype(np.float32)
        replay.begin(row)
        reward = np.array([-abs(action[0, 0] - state[0])], np.float32)
        replay.extend(action, reward, {name: values[None] for name, values in row.items()}, terminated=True)

    for _ in range(300):
        sac.update(replay.draw(64, draw))

    states = torch.tensor([[-0.6, 0, 0], [0.0, 0, 0], [0.6, 0, 0]])
    found = view.distribution({"proprio": states, "task": torch.zeros(3, 1)}).most_likely.flatten()
    torch.testing.assert_close(found, states[:, 0], atol=0.15, rtol=0)


def test_critics_are_as_many_separate_networks() -> None:
    torch.manual_seed(0)
    critics, one = Critics(3, 4, 2, 8, 2, layer_norm=True), Critics(1, 4, 2, 8, 2, layer_norm=True)
    state, actions = torch.randn(5, 4), torch.randn(5, 2)
    for place in range(3):
        one.load_state_dict({name: values[place : place + 1] for name, values in critics.state_dict().items()})
        torch.testing.assert_close(one(state, actions)[0], critics(state, actions)[place])


def test_what_is_not_finite_is_skipped_and_counted(tmp_path: Path) -> None:
    view = view_of(small(tmp_path))
    sac = SoftActorCritic(SacConfig(width=8), view, seed=0, device=torch.device("cpu"))
    seen = {"proprio": torch.zeros(4, 3), "task": torch.zeros(4, 1)}
    rewards = torch.tensor([0.0, float("inf"), 0.0, 0.0])
    drawn = DecisionBatch(seen, torch.zeros(4, 1), rewards, torch.ones(4), seen)
    before = {name: values.clone() for name, values in sac.critics.state_dict().items()}

    assert sac.update(drawn) == {} and sac.skipped == 1

    for name, values in sac.critics.state_dict().items():
        torch.testing.assert_close(values, before[name], rtol=0, atol=0)
    sac.update(DecisionBatch(seen, drawn.actions, torch.zeros(4), torch.ones(4), seen))
    assert sac.skipped == 1 and sac.updates == 2


@contextmanager
def damaged(file: Path) -> Iterator[None]:
    """The file with its last byte changed, for a while."""
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    yield
    file.write_bytes(whole)


def test_a_run_that_was_stopped_goes_on_exactly(
    tmp_path: Path, break_at: Callable[[int], None], atlas: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ["learning.sac.steps=150", "learning.sac.random_steps=40", "learning.sac.training_starts=50"]
    steps += ["learning.sac.save_interval=50", "learning.sac.eval_interval=100"]
    break_at(130)
    with pytest.raises(RuntimeError, match="lights"):
        learn_here(small(tmp_path, *steps, "run_name=broken"), PENDULUM)
    assert saved_steps(tmp_path / "broken" / "checkpoints") == [100]
    replay = tmp_path / "broken" / "checkpoints" / "latest" / "trainer" / "replay.safetensors"
    with damaged(replay), pytest.raises(InputError, match=r"replay.safetensors is damaged"):
        learn_here(small(tmp_path, *steps, "run_name=broken"), PENDULUM)
    learn_here(small(tmp_path, *steps, "run_name=broken"), PENDULUM)
    assert atlas("train", "--resume", str(tmp_path / "broken")) == 2
    assert "broken is a run of atlas learn" in capsys.readouterr().err
    code = atlas("learn", "sac", "--env", PENDULUM, "--json", *TINY, *steps, f"output_dir={tmp_path}", "run_name=whole")

    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["env_steps"] == 150 and found["updates"] == 100 and found["episodes"] == 3
    kept = [tmp_path / name / "checkpoints" / "step_00000150" for name in ("broken", "whole")]
    for file in ("trainer/learner.safetensors", "trainer/replay.safetensors", "policy/model.safetensors"):
        assert (kept[0] / file).read_bytes() == (kept[1] / file).read_bytes(), file
    actor, learner = (read_scalars(tmp_path / "whole" / part) for part in ("actor", "learner"))
    assert [step for step, _ in actor["actor/episode_reward"]] == [50, 100, 150]
    assert actor["actor/exploration_phase"][0][1] == 0 and "Train/Reward_Mean" in actor
    assert learner["learner/update_steps"][-1] == (100, 100) and "Val/Reward_Mean" in learner
    assert {"sac/critic_loss", "sac/temperature", "sac/entropy", "timer/train"} <= learner.keys()
    assert load_policy(tmp_path / "whole" / "best").processor.action_spec.dim == 1
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "atlas learn sac --env &#x27;gym:Pendulum" in page and "sac/critic_loss" in page
    assert "150 steps in the world" in page and "A mean reward of" in page
    for file in ("results.json", "evaluations/before.json"):
        again = reproduce(tmp_path / "whole" / file, workers=1)
        assert again.holds == "exactly" and len(again.claim.outcomes) == 2


def test_a_signal_ends_the_playing_of_held_out_episodes(tmp_path: Path) -> None:
    asked = Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    asked.start()
    with pytest.raises(Interrupted, match="SIGTERM") as stopped:
        learn_here(small(tmp_path, "learning.held_out_episodes=100000"), PENDULUM)
    assert stopped.value.exit_code == 143
