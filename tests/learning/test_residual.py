"""A small correction of a frozen policy: it begins as nothing, stays small, learns, and is a policy like others."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas.config import Config, ResidualSacConfig
from atlas.environments.catalog import environment_spec
from atlas.environments.cubes import CubesEnvironment
from atlas.errors import InputError
from atlas.learning.experience_replay import DecisionBatch, Replay
from atlas.learning.explorer import Explorer
from atlas.learning.policy_view import load_start
from atlas.learning.residual_view import ResidualView, corrected_policy
from atlas.learning.run_config import config_of_run
from atlas.learning.sac import SoftActorCritic
from atlas.learning.sac_run import learn_here, piece_of
from atlas.policies.base import load_policy
from atlas.runs import read_scalars
from atlas.types import Observation
from tests.learning.conftest import SILENT

CUBES = environment_spec("cubes", 32)
TINY = [
    "steps=24",
    "training_starts=8",
    "critic_warmup=1",
    "batch_size=4",
    "width=8",
    "actor_width=8",
    "eval_episodes=1",
]
TINY = [f"learning.residual.{each}" for each in (*TINY, "save_interval=4", "eval_interval=1000")]
TINY += ["learning.held_out_episodes=1", "learning.control=false", "training.log_interval=1"]


def config(run: Path, *overrides: str) -> Config:
    return config_of_run(str(run), "residual", [*TINY, f"output_dir={run.parent}", *overrides])


def seen(count: int = 1) -> list[Observation]:
    draw = np.random.default_rng(0)
    images = {name: draw.integers(0, 255, (32, 32, 3), np.uint8) for name in CUBES.cameras}
    told = CUBES.instructions[0]
    return [Observation(images, draw.normal(size=8).astype(np.float32), told) for _ in range(count)]


def test_the_start_of_learning_does_not_see_proprio_far_from_the_demonstrations(first_run: Path) -> None:
    plain, start = load_policy(first_run), load_start(str(first_run), 1.0)
    columns = plain.processor.statistics[0].proprio
    inside = replace(seen()[0], proprio=np.array(columns.max, np.float32))
    outside = replace(inside, proprio=inside.proprio + 100)
    near = replace(inside, proprio=np.array(columns.max, np.float32) + np.subtract(columns.max, columns.min))

    said = {
        name: policy.sample(policy.processor.batch([inside, outside, near]))
        for name, policy in {"plain": plain, "start": start}.items()
    }

    torch.testing.assert_close(said["start"][0], said["plain"][0])
    torch.testing.assert_close(said["start"][1], said["start"][2])
    assert (said["plain"][1] - said["plain"][2]).abs().max() > 1e-3
    assert load_start(str(first_run), None).processor.scaling == plain.processor.scaling


def test_it_begins_as_the_policy_that_it_corrects_and_never_leaves_it_far(first_run: Path, tmp_path: Path) -> None:
    settings = config(first_run, "learning.residual.scale=0.2")
    base, policy = load_start(str(first_run), 1.0), corrected_policy(settings, CUBES, str(first_run)).eval()
    batch = base.processor.batch(seen(3))

    torch.testing.assert_close(policy.sample(batch), base.sample(batch))
    assert not any(p.requires_grad for p in policy.parts()["base"].parameters())
    torch.nn.init.normal_(policy.parts()["correction"][-1].weight, std=9.0)  # type: ignore[index, union-attr, arg-type]
    policy.save_pretrained(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")

    moved = (
        policy.action_scaler.normalize(again.sample(batch), batch.source)  # type: ignore[operator, union-attr]
        - policy.action_scaler.normalize(base.sample(batch), batch.source)
    )  # type: ignore[operator, union-attr]
    torch.testing.assert_close(again.sample(batch), policy.sample(batch))
    assert 0.15 < moved.abs().max() < 0.2001
    torch.testing.assert_close(moved[:, :1].expand_as(moved), moved)  # one correction for the chunk


def test_it_learns_the_correction_that_is_rewarded(first_run: Path) -> None:
    """A task of one decision, rewarded by how far the first number of the chunk is corrected upwards."""
    settings = ResidualSacConfig(
        width=32, actor_width=32, learning_rate=3e-3, critic_learning_rate=3e-3, critic_warmup=9, penalty=0.3
    )
    policy = corrected_policy(config(first_run), CUBES, str(first_run))
    view, draw = ResidualView(policy, CUBES, settings), np.random.default_rng(0)
    sac = SoftActorCritic(settings, view, seed=0, device=torch.device("cpu"))
    replay = Replay(500, view.columns, view.action_dim)
    row = view.look(seen()[0])
    for _ in range(200):
        actions = view.at_random(row, draw)
        gained = np.array([10 * (actions[0] - row["base"][0, 0])], np.float32)
        replay.begin(row)
        replay.extend(actions[None], gained, {name: values[None] for name, values in row.items()}, terminated=True)

    for _ in range(120):
        shown = sac.update(replay.draw(64, draw))

    found = view.distribution({name: torch.from_numpy(values)[None] for name, values in row.items()})
    correction = found.correction.most_likely[0, 0]
    assert correction[0] > 0.5 and correction[1:].abs().max() < 0.4 and 0 < shown["sac/residual_size"] < 1


def test_the_replay_keeps_what_the_world_executes_and_critics_see_nothing_else(first_run: Path) -> None:
    settings = config(first_run).learning.residual
    view = ResidualView(corrected_policy(config(first_run), CUBES, str(first_run)), CUBES, settings)
    said = np.full(view.action_dim, 9, np.float32)
    said[:7] = 0
    with closing(CubesEnvironment(32)) as world:
        explorer = Explorer(world, seed=0)
        row = view.look(explorer.observation)
        after, _ = explorer.step(view.in_units(said))

    kept = piece_of(row, said, after, view).actions

    np.testing.assert_allclose(view.in_units(kept[0]), after.actions, atol=1e-5)
    assert view.in_units(said).max() > 1 and after.actions.max() == 1
    sac = SoftActorCritic(settings, view, seed=0, device=torch.device("cpu"))
    seen_then = {name: torch.from_numpy(values)[None] for name, values in row.items()}
    critic_saw: list[torch.Tensor] = []
    sac.targets.register_forward_pre_hook(lambda _, given: critic_saw.append(given[1]))
    seen_then["base"] += 9
    sac.target_values(DecisionBatch({}, torch.zeros(0), torch.zeros(1), torch.ones(1), seen_then), torch.Generator())
    assert np.abs(view.in_units(critic_saw[0][0].numpy())).max() <= 1 + 1e-5


def test_a_run_leaves_a_policy_and_ends_where_the_correction_runs_away(
    first_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cubes_dataset: Path
) -> None:
    monkeypatch.setattr("atlas.environments.cubes.HORIZON", 8)
    out = [f"output_dir={tmp_path}", "learning.residual.object_positions=true"]

    result = learn_here(config(first_run, *out), "cubes", str(first_run), "residual")

    assert result.steps == 24 and result.updates == 4 and result.ended is None
    learner = read_scalars(tmp_path / "first-residual" / "learner")
    assert {"sac/residual_size", "sac/critic_loss", "sac/actor_loss"} <= learner.keys()
    assert load_policy(tmp_path / "first-residual" / "best").config.type == "residual"
    away = [*SILENT, f"output_dir={tmp_path}", "run_name=away", "learning.residual.size_limit=0.01"]
    away.append(f"learning.residual.demonstrations={cubes_dataset}")
    ended = learn_here(config(first_run, *away), "cubes", str(first_run), "residual")
    assert ended.steps < 24 and ended.ended is not None and "learning.residual.size_limit (0.01)" in ended.ended


def test_what_cannot_be_corrected_is_refused(first_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"object_positions is true, but 'gym:.*cubes and metaworld"):
        settings = config(first_run, "learning.residual.object_positions=true").learning.residual
        other = replace(CUBES, name="gym:x", object_numbers=0)
        ResidualView(corrected_policy(config(first_run), CUBES, str(first_run)), other, settings)
    told = config(first_run, "learning.residual.object_positions=true", f"learning.residual.demonstrations={tmp_path}")
    view = ResidualView(corrected_policy(told, CUBES, str(first_run)), CUBES, told.learning.residual)
    with pytest.raises(InputError, match="recordings do not say where the objects are"):
        view.demonstrations(str(tmp_path))
