"""Environments of gymnasium: what is made of their spaces, how they are played, and what is wrong with a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'atlas-vla[gym]'")

from atlas.config import load_config
from atlas.config.gym_section import GymConfig
from atlas.environments.catalog import environment_spec, make_environment
from atlas.environments.environment import Pictured, Simulator
from atlas.environments.gym.gym_name import gym_name, read_name
from atlas.errors import InputError
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.evaluation import Evaluator
from atlas.types import ActionGroup, ActionSpec
from tests.bad_input.table import refused
from tests.rollout.gym_toy import LENGTH
from tests.rollout.still_actor import Still

TOY = "gym:tests.rollout.gym_toy:Toy-v0"
SUCCESS = f"{TOY}?success=solved"


def test_spaces_say_what_an_environment_offers() -> None:
    spec = environment_spec(TOY, 12)

    assert (spec.cameras, spec.image_size, spec.proprio_dim) == (("pixels_top",), (12, 16), 2 + 3)  # a goal of three
    assert (spec.instructions, spec.horizon, spec.judged, spec.choices) == ((), LENGTH, False, None)
    assert spec.action_spec == ActionSpec((ActionGroup("other", ("a0", "a1")),), 10.0)
    assert spec.action_bounds == ((-0.25, -0.25), (0.25, 0.25))


def test_a_config_says_otherwise() -> None:
    settings = {
        "cameras": {"agentview": "pixels.top", "scene": "render"},
        "proprio": ["agent_pos"],
        "action": [{"kind": "joints", "columns": 0}, {"kind": "gripper", "columns": 1, "open": 0, "closed": 1}],
        "success": "solved",
        "instruction": "go right & stay",
        "control_hz": 5,
        "horizon": 3,
        "make": {"colour": 50},
    }
    config = load_config({"evaluation": {"env": TOY, "gym": settings}}).evaluation
    again = load_config(load_config({"evaluation": config.model_dump()})).evaluation  # as a run's file holds it
    name = gym_name(again.env, again.gym)
    env = make_environment(name, 300)
    seen = env.reset(seed=1)

    assert read_name(name)[1] == config.gym and environment_spec(name) == environment_spec(env.spec.name)
    assert {camera: image.shape for camera, image in seen.images.items()} == {
        "agentview": (24, 32, 3),
        "scene": (60, 80, 3),
    }
    assert (seen.images["scene"] == 50).all() and seen.proprio.shape == (2,) and seen.proprio.dtype == np.float32
    assert seen.instruction == "go right & stay" and env.spec.instructions == ("go right & stay",)
    assert [group.kind for group in env.spec.action_spec.groups] == ["joints", "gripper"]
    assert (env.spec.action_spec.control_hz, env.spec.horizon, env.spec.judged) == (5, 3, True)
    assert isinstance(env, Pictured) and env.picture(64).shape == (64, 64, 3)  # type: ignore[union-attr]


def test_a_rotation_of_the_state_is_shown_in_another_form() -> None:
    """The one-hot goal, taken for an axis-angle: a turn about y."""
    name = gym_name(TOY, GymConfig(proprio_rotations=[{"columns": [2, 5], "form": "axis_angle"}]))
    env = make_environment(name)

    seen = env.reset(seed=1).proprio

    assert seen.shape == (2 + 6,) == (env.spec.proprio_dim,)
    np.testing.assert_allclose(seen[2:], [np.cos(1), 0, -np.sin(1), 0, 1, 0], atol=1e-6)


def test_a_seed_is_a_start_whatever_came_before() -> None:
    env = make_environment(TOY)
    seeds = [3 * 10**12 + 5, 7]
    first = [env.reset(seed=seed).proprio for seed in seeds]
    env.step(np.zeros(2))
    again = [env.reset(seed=seed).proprio for seed in reversed(seeds)][::-1]

    assert np.array_equal(first, again) and not np.array_equal(*first) and not isinstance(env, Simulator)


def test_actions_are_clipped_and_an_end_is_told_from_a_limit() -> None:
    env = make_environment(SUCCESS)
    env.reset(seed=0)
    right = [env.step(np.array([9.0, 0.1])) for _ in range(3)]
    back = [env.step(np.array([-0.2, 0.0])) for _ in range(3)]

    assert right[0].executed is not None and right[0].executed.tolist() == [0.25, 0.1]
    assert [r.success for r in [*right, *back]] == [False, *[True] * 5]  # once it has won it has won
    assert [(r.terminated, r.truncated) for r in back] == [(False, False), (False, False), (False, True)]
    last = back[-1].observation
    assert last is not None and last.proprio[0] == pytest.approx(back[-1].reward)
    assert env.step(np.zeros(2), observe=False).observation is None

    env.reset(seed=0)
    fallen = [env.step(np.array([-1.0, 0.0])) for _ in range(3)][-1]
    assert (fallen.terminated, fallen.truncated, fallen.success) == (True, False, False)


@pytest.mark.parametrize(("wanted", "expected"), [("terminated", True), ("-2", True), ("2", False)])
def test_success_may_be_the_end_or_a_sum_of_rewards(wanted: str, expected: bool) -> None:
    env = make_environment(f"{TOY}?success={wanted}")
    env.reset(seed=0)

    assert [env.step(np.array([-1.0, 0.0])) for _ in range(3)][-1].success is expected


def test_a_world_of_numbers_alone_is_described() -> None:
    pendulum, cart = environment_spec("gym:Pendulum-v1"), environment_spec("gym:CartPole-v1")

    assert (pendulum.cameras, pendulum.instructions, pendulum.proprio_dim, pendulum.horizon) == ((), (), 3, 200)
    assert (pendulum.action_bounds, pendulum.choices, pendulum.judged) == (((-2.0,), (2.0,)), None, False)
    assert (cart.choices, cart.action_spec.dim, cart.judged, cart.action_bounds) == (2, 1, True, None)
    env = make_environment("gym:CartPole-v1")
    seen, result = env.reset(seed=1), env.step(np.array([0.8]))
    assert seen.images == {} and seen.instruction == "" and seen.proprio.shape == (4,)
    assert result.executed is not None and result.executed.tolist() == [1.0] and result.reward == 1.0


def test_episodes_run_side_by_side_and_are_filmed(tmp_path: Path) -> None:
    """Without cameras and instructions, too; each starts as its seed says."""
    evaluator = Evaluator("gym:Pendulum-v1", 16, workers=2)
    try:
        planned = plan_episodes("gym:Pendulum-v1", 3, "report", 0)
        together = evaluator.run(Still(1), planned, videos=1, video_dir=tmp_path, title=None)
        alone = [evaluator.run(Still(1), [episode], title=None)[0] for episode in reversed(planned)][::-1]
    finally:
        evaluator.close()

    assert [o.reward for o in together] == [o.reward for o in alone] and len({o.reward for o in together}) == 3
    assert [film.name for film in tmp_path.iterdir()] == ["episode_000_ended.mp4"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gym:", ["names no environment", "gym:Pendulum-v1"]),
        ("gym:Pendulun-v1", ["There is no environment 'gym:Pendulun-v1'", "Pendulum"]),
        ("gym:Pendulum-v77", ["There is no environment"]),
        ("gym:no_such_package/Thing-v0", ["not installed", "no_such_package"]),
        ("gym:Pendulum-v1?horizont=3", ["unknown key 'horizont'", "Did you mean 'horizon'"]),
        ("gym:Pendulum-v1?horizon", ["'horizon' should be key=value"]),
        ("gym:Pendulum-v1?horizon=0", ["horizon", "greater than or equal to 1"]),
        ("gym:Pendulum-v1?make.gravitas=3", ["cannot be started", "gravitas"]),
        (f"{TOY}?success=solvd", ["success names 'solvd'", "Did you mean 'solved'", "solved"]),
        ("gym:Pendulum-v1?success=is_success", ["success names 'is_success'", "no keys at all"]),
        (f"{TOY}?cameras.top=pixels", ["cameras.top names 'pixels'", "pixels.top", "render"]),
        (f"{TOY}?proprio=[agent_pos, position]", ["proprio names 'position'", "agent_pos"]),
        (f"{TOY}?proprio_rotations=[{{columns: [3, 6], form: axis_angle}}]", ["dimensions up to 6", "proprio has 5"]),
        (f"{TOY}?action=[{{kind: joints, columns: 0}}]", ["columns [0]", "each of the 2"]),
        ("gym:CartPole-v1?action=[{kind: joints, columns: 0}]", ["Discrete(2)"]),
    ],
)
def test_a_wrong_name_is_refused(tmp_path: Path, name: str, words: list[str]) -> None:
    refused(tmp_path, ["eval", "--checkpoint", "nowhere", "--env", name], *words)


def test_how_to_read_a_gym_world_goes_with_no_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluation.env is 'cubes'; expected gym:ID"):
        gym_name("cubes", GymConfig(horizon=3))
    with pytest.raises(InputError, match="nothing after the ID"):
        gym_name(SUCCESS, GymConfig(horizon=3))


def test_discrete_actions_are_refused_by_name(
    atlas: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.policies.test_policy import make_policy

    make_policy("keypoints").eval().save_pretrained(tmp_path / "policy")

    assert atlas("eval", "--checkpoint", str(tmp_path / "policy"), "--env", "gym:CartPole-v1") == 2
    assert "which has 2 discrete actions: a policy's actions are continuous" in capfd.readouterr().err
