"""Worlds of packages that may not be here: what they offer where they are, and what is said where they are not."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'atlas-vla[gym]'")

from atlas.environments import installed_worlds
from atlas.environments.catalog import environment_spec, find_demonstrator, make_environment
from atlas.environments.gym.aloha_demonstrator import _between, _Pose
from atlas.environments.gym.gym_presets import PRESETS
from atlas.environments.installed_worlds import conflicting_pins, pins_explained
from atlas.environments.model_variation import rotation_by
from atlas.errors import InputError
from atlas.types import ActionGroup, ActionSpec
from tests.bad_input.table import refused

MODULES = {"aloha-transfer-cube": "gym_aloha", "aloha-insertion": "gym_aloha", "pusht": "gym_pusht"}


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


@pytest.mark.parametrize(("name", "module"), MODULES.items())
def test_the_line_that_installs_a_world_is_said(tmp_path: Path, name: str, module: str) -> None:
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    extra = module.removeprefix("gym_")
    refused(tmp_path, ["eval", "--checkpoint", "x", "--env", name], f"pip install 'atlas-vla[{extra}]'", "serve")


def test_aloha_is_two_arms_of_joints() -> None:
    """Which its presets say without the package."""
    for name in ("aloha-transfer-cube", "aloha-insertion"):
        groups = PRESETS[name].config.action
        assert groups is not None
        spec = ActionSpec(tuple(group.named(group.names or ()) for group in groups), 50.0)
        assert (spec.dim, spec.arms, [len(g.names) for g in spec.groups]) == (14, ("left", "right"), [6, 1, 6, 1])
        assert spec.groups[1] == ActionGroup(
            "gripper", ("left_gripper",), arm="left", continuous=True, open=1.0, closed=0.0
        )


@needs("gym_aloha")
def test_aloha_holds_still_beyond_the_bounds_that_it_states() -> None:
    env = make_environment("aloha-transfer-cube", 48)
    seen = env.reset(seed=2 * 10**12 + 1)
    for _ in range(5):
        result = env.step(seen.proprio)  # its elbows stand at 1.16, and its Box ends at 1
    again = env.reset(seed=2 * 10**12 + 1)

    assert (env.spec.image_size, env.spec.proprio_dim, env.spec.action_spec.control_hz) == ((48, 64), 14, 50)
    assert seen.images["top"].shape == (48, 64, 3) and seen.images["top"].std() > 10
    assert result.observation is not None and np.abs(result.observation.proprio - seen.proprio).max() < 0.02
    assert np.array_equal(again.images["top"], seen.images["top"])
    env.close()


@needs("gym_aloha")
def test_the_cube_is_transferred_from_arm_to_arm() -> None:
    """With rewards for touching it, lifting it, and its being touched by the left arm in the air."""
    env = make_environment("aloha-transfer-cube", 48)
    env.reset(seed=0)
    expert = find_demonstrator("aloha-transfer-cube")(env, np.random.default_rng(0))
    results = []
    while len(results) < 200 and not (results and results[-1].terminated):
        results.append(env.step(expert.act(), observe=False))

    assert results[-1].success and {0, 1, 2, 4} <= {result.reward for result in results}
    env.close()


def test_poses_between_two_are_on_the_way() -> None:
    plan = [_Pose(0, np.zeros(3), np.eye(3), 1.0), _Pose(10, np.ones(3), rotation_by(np.array([0, 0, 3.0])), 0.0)]

    place, turned, opening = _between(plan, 5)

    assert place.tolist() == [0.5, 0.5, 0.5] and opening == 0.5
    np.testing.assert_allclose(turned, rotation_by(np.array([0, 0, 1.5])), atol=1e-9)


@needs("gym_pusht")
def test_pusht_follows_the_pusher() -> None:
    env = make_environment("pusht", 96)
    seen = env.reset(seed=3)
    for _ in range(20):
        result = env.step(np.array([256.0, 600.0]))  # clipped to 512

    assert environment_spec("pusht").cameras == ("image",) and seen.images["image"].shape == (96, 96, 3)
    assert result.executed is not None and result.executed.tolist() == [256.0, 512.0]
    assert result.observation is not None and result.observation.proprio[1] > 450
    env.close()


def test_pins_that_conflict_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy==1.0", "pytest>=1", "surely-not-here>2", "numpy<1; extra == 'other'"]
    monkeypatch.setattr(installed_worlds, "requires", lambda name: asked)

    found = conflicting_pins("some-world")
    said = r"requirements of some-world .*numpy==1.0 is required.*atlas environment serve"
    with pytest.raises(InputError, match=said), pins_explained("some", "some-world"):
        raise AttributeError("module has no attribute 'mjOld'")
    monkeypatch.setattr(installed_worlds, "requires", lambda name: ["pytest>=1"])
    with pytest.raises(AttributeError), pins_explained("some", "some-world"):
        raise AttributeError("a defect")

    assert len(found) == 2 and found[0].startswith("numpy==1.0 is required, and ") and "surely-not-here" in found[1]
