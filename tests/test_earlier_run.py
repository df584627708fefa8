"""A run that an earlier version made, as of 2026-11-29: today's code loads its policy, resumes it and evaluates it.

tests/fixtures/earlier_run.tar.xz holds two demonstrations of cubes (`data/`), a run of two steps with a tiny policy
(`run/`), and the chunk that the policy predicted then for the observation below (`actions.json`).
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import atlas
from atlas.policies.base import load_policy
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.runs import read_scalars
from atlas.types import Observation
from tests.rollout.sites import install

RUN = Path(__file__).parent / "fixtures" / "earlier_run.tar.xz"


def test_an_earlier_run_acts_as_it_did_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # its config says `path: data`
    policy = load_policy("run")
    pixels = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)
    images = dict.fromkeys(policy.processor.cameras, pixels)
    observation = Observation(images, np.linspace(-1, 1, 8, dtype=np.float32), "pick up the red cube")

    chunk = ChunkExecutor(policy, 8).plan({0: observation})[0]

    np.testing.assert_allclose(chunk, json.loads(Path("actions.json").read_text()), atol=1e-5)

    # A world that takes no time; the run was evaluated in cubes, which does.
    install(tmp_path, monkeypatch, "drift", "atlas.environments", "drift = tests.rollout.drift_world:WORLD")
    more = ["training.max_steps=3", "evaluation.env=drift", "evaluation.final_episodes=0"]
    result = atlas.train(None, more, resume="run")

    scalars = read_scalars(result.run_dir)
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3]
    assert [step for step, _ in scalars["eval/success_rate"]] == [2, 3]
    assert (result.run_dir / "checkpoints" / "latest").resolve().name == "step_00000003"
