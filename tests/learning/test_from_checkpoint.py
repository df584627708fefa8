"""Learning by reward from a trained policy: its control, its successes as a dataset, and a correction that goes on."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium", reason="a small world is gymnasium's: pip install 'atlas-vla[gym]'")

from atlas.checkpoints import saved_steps
from atlas.config import Config, DistributedConfig, SacConfig
from atlas.data.episode import RecordedEpisode
from atlas.data.formats import open_dataset
from atlas.environments.catalog import make_environment
from atlas.errors import InputError
from atlas.learning.actors import learner_role
from atlas.learning.actors.actor_role import act
from atlas.learning.actors.learner_role import learn_from_actors
from atlas.learning.actors.messages import Address
from atlas.learning.control import control_policy
from atlas.learning.explorer import Explorer
from atlas.learning.on_policy.ppo import learn_ppo
from atlas.learning.rank_group import one_device
from atlas.learning.run_config import config_of_run
from atlas.learning.sac_run import learn_here
from atlas.policies.base import load_policy
from atlas.runs import read_scalars
from tests.learning.bandit import NAME as BANDIT
from tests.learning.conftest import SILENT
from tests.learning.shelf_world import HORIZON
from tests.rollout.sites import install

RESIDUAL = ["steps=60", "training_starts=20", "critic_warmup=1", "batch_size=4", "width=8", "actor_width=8"]
RESIDUAL = [f"learning.residual.{each}" for each in (*RESIDUAL, "eval_episodes=1", "save_interval=20")]
FEW = ["learning.held_out_episodes=1", "training.log_interval=1", *SILENT]


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "shelf", "atlas.environments", "shelf = tests.learning.shelf_world:SHELF")


def config_for(run: Path, name: str, out: Path, *overrides: str) -> Config:
    return config_of_run(str(run), name, [*FEW, f"output_dir={out}", *overrides])


def test_ppo_is_compared_with_as_much_imitation_and_keeps_its_successes(first_run: Path, tmp_path: Path) -> None:
    few = ["steps=40", "worlds=1", "decisions=5", "epochs=1", "batch_size=5", "eval_episodes=1", "keep_successes=true"]
    config = config_for(first_run, "ppo", tmp_path, *[f"learning.ppo.{each}" for each in few])

    result = learn_ppo(config, "shelf", str(first_run))

    found = json.loads((config.run_dir / "results.json").read_text())
    trained = json.loads((config.run_dir / "control" / "results.json").read_text())
    assert result.control is not None and result.control.success_rate == 1 and found["without_control"] is None
    assert trained["metrics"]["train/step"] == result.updates == found["updates"] > 0
    assert found["control"]["starts"]["gained"] == found["control"]["starts"]["lost"] == 0
    assert "against plain imitation 0 gained, 0 lost" in result.sentence()
    kept = open_dataset(config.run_dir / "experience")
    assert len(kept) == result.episodes and set(kept.lengths.tolist()) == {HORIZON}


def test_why_there_is_no_control(first_run: Path, tmp_path: Path) -> None:
    config, processor = config_for(first_run, "ppo", tmp_path), load_policy(first_run).processor

    def found(config: Config = config, checkpoint: str | None = str(first_run), steps: int = 1, ranks: int = 1) -> str:
        why = control_policy(config, checkpoint, processor, steps, ranks)
        assert isinstance(why, str)
        return why

    assert "new weights" in found(checkpoint=None) and "never updated" in found(steps=0)
    assert "several processes" in found(ranks=2)
    assert "learning.control is false" in found(config_for(first_run, "ppo", tmp_path, "learning.control=false"))
    assert "cannot be read" in found(config_for(first_run, "ppo", tmp_path, f"data.path={tmp_path / 'none'}"))


def test_sac_learns_in_one_process() -> None:
    with pytest.raises(InputError, match=r"distributed asks for 2 processes, and SAC learns in one: .*--actors"):
        one_device(DistributedConfig(cpu=True, gpus=2))
    assert one_device(DistributedConfig()) == torch.device("cpu")


def test_what_succeeds_is_handed_on_as_it_ends() -> None:
    """From a simulator, which is rendered afterwards, and from another world, which is watched."""
    for world, wanted in (("shelf", HORIZON), (BANDIT, 1)):
        kept: dict[int, RecordedEpisode] = {}
        with closing(make_environment(world, 16)) as env:
            explorer = Explorer(env, seed=0, actor=1, actors=3, keep=kept.__setitem__)
            seen, succeeded, first = [explorer.observation], list[int](), explorer.observation
            while explorer.episodes < 4:
                playing = explorer.episodes
                dim = env.spec.action_spec.dim
                after, ended = explorer.step(np.full((2, dim), first.proprio[0] if world == BANDIT else 0.5))
                if playing == 0:
                    seen.append(after.next_observation)
                if ended is not None and ended.success:
                    succeeded.append(playing * 3 + 1)
                first = explorer.observation
        assert list(kept) == succeeded == [1, 4, 7, 10]
        episode = kept[1]
        assert len(episode.actions) == len(episode.proprio) == wanted and episode.rewards is not None
        np.testing.assert_array_equal(episode.proprio[0], seen[0].proprio)
        for camera, images in episode.images.items():
            np.testing.assert_array_equal(images[0], seen[0].images[camera])
            np.testing.assert_array_equal(images[2], seen[1].images[camera])


def test_a_correction_that_was_stopped_goes_on_exactly(
    first_run: Path, tmp_path: Path, break_at: Callable[[int], None]
) -> None:
    out = [*RESIDUAL, "learning.control=false"]
    break_at(13)
    with pytest.raises(RuntimeError, match="lights"):
        learn_here(config_for(first_run, "residual", tmp_path, *out), "shelf", str(first_run), "residual")
    assert saved_steps(tmp_path / "first-residual" / "checkpoints") == [40]
    learn_here(config_for(first_run, "residual", tmp_path, *out), "shelf", str(first_run), "residual")
    whole = config_for(first_run, "residual", tmp_path, *out, "run_name=whole")
    result = learn_here(whole, "shelf", str(first_run), "residual")

    kept = [tmp_path / name / "checkpoints" / "step_00000060" for name in ("first-residual", "whole")]
    for file in ("trainer/learner.safetensors", "trainer/replay.safetensors", "policy/model.safetensors"):
        assert (kept[0] / file).read_bytes() == (kept[1] / file).read_bytes(), file
    assert result.updates > 2 and result.control is None and "learning.control is false" in result.sentence()


def test_a_correction_is_learned_from_actors(first_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("zmq", reason="actors talk through pyzmq: pip install 'atlas-vla[serve]'")
    more = ["steps_per_message=2", "push_interval=2", "connect_timeout=60"]
    more = [*RESIDUAL, "learning.control=false", *[f"learning.residual.{each}" for each in more]]
    config, played = config_for(first_run, "residual", tmp_path, *more), list[int]()
    threads: list[threading.Thread] = []

    def start(port: int) -> None:
        there = Address("127.0.0.1", port)
        play = lambda: played.append(act(config, "shelf", there, "key", str(first_run), "residual"))  # noqa: E731
        threads.append(threading.Thread(target=play))
        threads[-1].start()

    result = learn_from_actors(config, "shelf", Address("127.0.0.1", 0), "key", str(first_run), start, name="residual")
    threads[0].join()

    assert result.steps >= 60 and played[0] >= 60 and result.updates > 2
    assert "actor/episode_reward" in read_scalars(config.run_dir / "actor")
    assert "sac/residual_size" in read_scalars(config.run_dir / "learner")
    assert load_policy(config.run_dir / "best").config.type == "residual"
    with pytest.raises(InputError, match=r"keep_successes is true, but actors elsewhere send no images"):
        kept = config_for(first_run, "residual", tmp_path, *more, "learning.residual.keep_successes=true")
        learn_from_actors(kept, "shelf", Address("127.0.0.1", 0), "key", str(first_run), name="residual")


def test_an_actor_that_is_not_heard_of_is_named_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = SimpleNamespace(begun_with={}, sac=SimpleNamespace(updates=0))
    run = SimpleNamespace(settings=SacConfig())
    hub = learner_role._Hub(run, learner, None, None)  # type: ignore[arg-type]
    now = 100.0
    monkeypatch.setattr(learner_role.time, "monotonic", lambda: now)
    hub.last_heard = {0: 99.0, 1: 60.0}

    with caplog.at_level(logging.WARNING):
        hub._notice_silence()
        hub._notice_silence()

    assert [record.getMessage() for record in caplog.records] == [
        "Actor 1 has not been heard of for 30 s; learning goes on"
    ]
    assert hub.last_heard == {0: 99.0}
