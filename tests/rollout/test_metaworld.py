"""Meta-World's tasks: what a policy sees, starts, states, demonstrations, and what is wrong with a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlas.environments.metaworld_tasks import MT10, TASKS, TIERS, tiers_of
from atlas.environments.perturbations.choices import PerturbationChoice, choose_perturbations
from atlas.environments.scene_variation import AS_IT_IS
from atlas.errors import InputError
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from tests.bad_input.table import refused


def test_tiers_are_those_of_the_tables() -> None:
    """28, 11, 6 and 5 of the 50; their mean weighs tiers alike, whatever they hold."""
    assert {tier: len(tasks) for tier, tasks in TIERS.items()} == {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}
    assert sorted(task for tasks in TIERS.values() for task in tasks) == sorted(TASKS)
    assert len(set(TASKS.values())) == 50 and set(MT10) <= set(TASKS)

    tiers = tiers_of(MT10)
    outcomes = tuple(EpisodeOutcome(TASKS[task], 0, task != "push", 1.0, 5) for task in MT10)
    told = EvaluationReport("metaworld-mt10", "p", outcomes, tiers=tiers).to_dict()

    assert {tier: each["episodes"] for tier, each in told["per_tier"].items()} == {"easy": 7, "medium": 1, "hard": 2}
    assert told["mean_of_tiers"] == pytest.approx((1 + 1 + 0.5) / 3) and told["success_rate"] == 0.9
    assert tiers_of(("reach", "door-open")) == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("data record --env metaworld-drawer-opn --episodes 4 --out o", ["no task 'drawer-opn'", "'drawer-open'"]),
        ("data record --env metaworld- --episodes 4 --out o", ["Unknown environment 'metaworld-'", "mt10"]),
        ("data record --env gym:Pendulum-v1 --episodes 4 --out o", ["no scripted expert", "cubes", "metaworld-"]),
    ],
)
def test_a_wrong_name_is_refused(tmp_path: Path, arguments: str, words: list[str]) -> None:
    refused(tmp_path, arguments.split(), *words)


def test_the_line_that_installs_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.environments.installed_worlds.find_spec", lambda name: None)

    refused(tmp_path, ["eval", "--checkpoint", "x", "--env", "metaworld-reach"], "pip install 'atlas-vla[metaworld]'")


needs_package = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('metaworld')",
    reason="Meta-World is not installed: pip install 'atlas-vla[metaworld]'",
)


@needs_package
def test_a_start_follows_from_its_seed_and_a_state_says_all() -> None:
    from atlas.environments.catalog import find_expert, make_environment
    from atlas.environments.environment import Simulator

    env = make_environment("metaworld-mt10", 32)
    assert isinstance(env, Simulator)
    try:
        drawer, door = TASKS["drawer-open"], TASKS["door-open"]
        first = env.reset(seed=4 * 10**12, instruction=drawer)
        assert first.proprio.shape == (4,) and first.images["corner"].shape == (32, 32, 3)
        other = env.reset(seed=4 * 10**12 + 1, instruction=drawer)
        env.reset(seed=3, instruction=door)
        again = env.reset(seed=4 * 10**12, instruction=drawer)
        assert np.array_equal(first.images["corner"], again.images["corner"])
        assert not np.array_equal(first.images["corner"], other.images["corner"])

        expert = find_expert("metaworld-mt10")
        assert expert is not None
        acting = expert(env)
        for _ in range(10):
            env.step(acting.act(), observe=False)
        state, seen = env.get_state(), env.observe()
        onward = [env.step(acting.act(), observe=False) for _ in range(150)][:5]
        env.reset(seed=3, instruction=door)
        begun = env.reset(init_state=state, instruction=drawer)
        assert np.array_equal(begun.images["corner"], seen.images["corner"])
        assert np.array_equal(begun.proprio, seen.proprio)
        acting = expert(env)
        replayed = [env.step(acting.act(), observe=False) for _ in range(5)]
        assert [r.reward for r in replayed] == pytest.approx([r.reward for r in onward], abs=1e-9)
    finally:
        env.close()


@needs_package
def test_a_scene_is_perturbed_and_put_back() -> None:
    from atlas.environments.metaworld import MetaworldEnvironment

    env = MetaworldEnvironment("metaworld-drawer-open", 48)
    try:
        plain = env.reset(seed=3).images["corner"]
        for name in ("camera_pose", "light_intensity", "table_texture", "table_colour", "background"):
            variation = PerturbationChoice(name, 4).of_episode(3, env.spec).variation()
            env.vary(variation)
            seen = env.reset(seed=3).images["corner"]
            assert np.abs(seen.astype(int) - plain).mean() > 2, name
            assert np.array_equal(env.reset(seed=3).images["corner"], seen), name
        env.vary(AS_IT_IS)
        assert np.array_equal(env.reset(seed=3).images["corner"], plain)
        names = {choice.name for choice in choose_perturbations(["all:1"], env.spec)}
        assert {"light_shadows", "camera_field", "table_texture", "jpeg"} <= names and "start_pose" not in names
        with pytest.raises(InputError, match="no other words are known for its instruction"):
            choose_perturbations(["other_language"], env.spec)
    finally:
        env.close()


@needs_package
def test_what_is_seen_is_upright() -> None:
    """The hand is where the camera's place and the world's up put it, and rises when it is told to."""
    from atlas.environments.metaworld import MetaworldEnvironment

    size = 96
    env = MetaworldEnvironment("metaworld-reach", size)
    try:
        env.begin(seed=0)
        data, model = env.scene._env.data, env.scene._env.model
        camera = data.camera("corner")
        right, up, back = camera.xmat.reshape(3, 3).T
        right, up = (right, up) if up[2] > 0 else (-right, -up)  # as somebody stands who looks

        def place() -> np.ndarray:
            away = env.positions()["hand"] - camera.xpos
            focal = size / 2 / np.tan(np.deg2rad(model.camera("corner").fovy[0]) / 2)
            return size / 2 + focal / -(away @ back) * np.array([-(away @ up), away @ right])

        before, first = env.observe().images["corner"].astype(int), place()
        for _ in range(40):
            env.step(np.array([0, 0, 1.0, -1]), observe=False)
        after, last = env.observe().images["corner"].astype(int), place()
        rows, columns = np.nonzero(np.abs(after - before).sum(-1) > 60)
        seen, expected = np.array([rows.mean(), columns.mean()]), (first + last) / 2
        turned = size - expected
        assert last[0] < first[0] - 3 and len(rows) > 20
        assert np.linalg.norm(seen - expected) < 0.5 * np.linalg.norm(seen - turned), (seen, expected)
    finally:
        env.close()


@needs_package
def test_a_hand_that_hits_the_table_or_a_wall_has_collided() -> None:
    """And one that is on its way to the task's thing has not."""
    from atlas.environments.metaworld import MetaworldEnvironment, MetaworldExpert
    from atlas.rollout.verdicts.failures import MotionWatch

    down = np.array([0, 0, -1.0, 1])
    for task, things in (("push-wall", {"obj"}), ("drawer-open", {"drawer"}), ("reach", set())):
        env = MetaworldEnvironment(f"metaworld-{task}", 16)
        try:
            env.begin(seed=0)
            assert env.task_things() == things and env.contact_forces() == {}
            told = {}
            for name, act in (("down", lambda: down), ("expert", MetaworldExpert(env).act)):
                env.begin(seed=0)
                watch = MotionWatch(env)
                for _ in range(60):
                    action = act()
                    env.step(action, observe=False)
                    watch.stepped(action)
                told[name] = watch.failure().kind
            assert told["down"] == "collided" and told["expert"] != "collided", (task, told)
        finally:
            env.close()


@needs_package
def test_its_policies_record_demonstrations_that_succeed_when_replayed(tmp_path: Path) -> None:
    """As a LeRobot dataset, whose recorded actions succeed from the recorded starts."""
    from atlas.checks.data_check import check_data
    from atlas.config import load_config
    from atlas.data.formats import open_dataset
    from atlas.rollout.recorded_actions import evaluate_recorded
    from atlas.rollout.recording import RecordSettings, record

    settings = RecordSettings("metaworld-drawer-close", episodes=2, image_size=32)
    record(settings, tmp_path / "demos", workers=1, codec="png")
    dataset = open_dataset(str(tmp_path / "demos"))

    assert (dataset.environment, dataset.tasks, len(dataset)) == ("metaworld-drawer-close", ["close the drawer"], 2)
    assert dataset.action_spec.control_hz == 80 and dataset.proprio_dim == 4
    report = evaluate_recorded(dataset, "metaworld-drawer-close", 2, workers=1)
    assert report.success_rate == 1.0
    findings = check_data(load_config({}, [f"data.path={tmp_path / 'demos'}"]), "none")
    assert [f.message for f in findings if f.severity != "info" and f.check in ("lag", "scale")] == []
