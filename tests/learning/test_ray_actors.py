"""Actors as tasks of Ray: the same learner and actors, and what is said where Ray is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("gymnasium", reason="Pendulum is gymnasium's: pip install 'atlas-vla[gym]'")

from atlas.errors import InputError
from atlas.learning.actors.actor_processes import learn_with_actors
from atlas.runs import read_scalars
from tests.learning.test_sac import PENDULUM, small


def test_ray_on_one_machine_runs_the_actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="pip install 'atlas-vla[ray]'")
    pytest.importorskip("zmq", reason="pip install 'atlas-vla[serve]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    few = ["steps=150", "random_steps=40", "training_starts=50", "steps_per_message=10", "connect_timeout=60"]

    config = small(tmp_path, *[f"learning.sac.{each}" for each in few])
    result = learn_with_actors(config, PENDULUM, 2, ray=True)

    assert result.steps >= 150 and result.updates > 0
    assert "actor/episode_reward" in read_scalars(config.run_dir / "actor")
    assert (config.run_dir / "best" / "policy" / "model.safetensors").exists()


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    with pytest.raises(InputError, match=r"RAY_ADDRESS is 127\.0\.0\.1:1, and no cluster of Ray answers there"):
        learn_with_actors(small(tmp_path), PENDULUM, 2, ray=True)


def test_where_ray_is_missing_the_line_that_installs_it_is_named(
    atlas: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    assert atlas("learn", "sac", "--env", PENDULUM, "--actors", "2", "--ray") == 2
    assert "pip install 'atlas-vla[ray]'" in capsys.readouterr().err
    assert atlas("learn", "sac", "--env", PENDULUM, "--ray") == 2
    assert "such as --actors 4 --ray" in capsys.readouterr().err
